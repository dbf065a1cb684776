-- One row is one scorer of a corpus with what it says of one example; scorers that have not read it are listed too.
-- Units: nll_sum in nats, n_response_tokens in tokens, mean_nll in nats per token, null unless status is 'scored'.
-- Key: scorer_id.
-- param: corpus text required corpus name
-- param: id text required a whole example id

select
    scorers.role, scorers.label, scorers.scorer_domain, scorers.complete, coalesce(scores.status, 'not_scored') as status,
    scores.reason, scores.nll_sum, scores.n_response_tokens, scores.mean_nll, scorers.measure_id, scorers.scorer_id
from scorers
left join scores
    on scores.corpus = scorers.corpus and scores.scorer_id = scorers.scorer_id and scores.example_id = $id
where scorers.corpus = $corpus
order by scorers.scorer_id
