-- One row is one example with a gap under one aligned scorer: its place in the plane of the two losses.
-- Units: mean_nll_*, gap_abs in nats per token, gap_rel a ratio, n_response_tokens in tokens. Key: corpus, aligned_id, example_id.
-- param: corpus text null one corpus; null: all
-- param: hold_out text[] [] domains whose misaligned models are left out
-- param: eps double 1.0 nats per token, for gap_rel
select
    corpus, aligned_id, example_id, n_response_tokens, mean_nll_aligned, mean_nll_misaligned, gap_abs, gap_rel, gap_contrast,
    domain, source
from gap_rows(in_corpus := $corpus, hold_out := $hold_out, eps := $eps)
where complete
order by corpus, aligned_id, example_id
