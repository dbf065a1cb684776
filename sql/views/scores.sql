-- One row is one example under one scorer.
-- Units: nll_sum in nats, n_response_tokens and n_tokens in tokens, mean_nll in nats per token (null unless scored, with
-- status and reason beside it). Key: corpus, scorer_id, example_id.
create or replace view scores as
select
    parts.corpus, parts.example_id, parts.scorer_id, scorers.label, scorers.role, scorers.scorer_domain,
    parts.status, parts.nll_sum, parts.n_response_tokens,
    mean_nll(parts.nll_sum, parts.n_response_tokens) as mean_nll, parts.n_tokens, parts.reason
from score_parts as parts
join scorers on scorers.corpus = parts.corpus and scorers.scorer_id = parts.scorer_id
