-- One row is one example under one scorer that has a loss for it.
-- Units: nll_sum in nats, n_response_tokens in tokens, mean_nll in nats per token. Key: corpus, scorer_id, example_id.
-- param: corpus text null one corpus; null: all
-- param: scorer text null one scorer's id; null: all
select corpus, scorer_id, label, role, scorer_domain, example_id, nll_sum, n_response_tokens, mean_nll
from scores
where mean_nll is not null and ($corpus is null or corpus = $corpus) and ($scorer is null or scorer_id = $scorer)
order by corpus, scorer_id, example_id
