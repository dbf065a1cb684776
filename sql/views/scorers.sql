-- One row is one scorer of a corpus: a model (with or without adapter) under one template, mask rule, window, dtype and engine.
-- Units: n_rows counts examples, n_tokens tokens read, seconds of scoring; scorer_domain is what a misaligned or benign
-- model was tuned on. complete: its losses cover the corpus revision in view (or the stated sample of it). Scorers with
-- one measure_id differ in weights and adapter alone, and so may share a gap. Key: corpus, scorer_id.
create or replace view scorers as
select
    corpus, scorer_id, label, role, scorer_domain, measure_id, renderer_id, revision, sample_n, sample_seed,
    complete, n_rows, n_tokens, seconds, identity
from scorer_files
