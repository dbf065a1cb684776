-- One row is one scorer of a corpus: its role, what it covers and its loss over all scored rows.
-- Units: n_* count examples (n_not_scored: in the corpus, without a row from this scorer), n_response_tokens tokens, mean_nll
-- is summed loss over summed tokens, in nats per token. Key: corpus, scorer_id.
-- param: corpus text null one corpus; null: all
with covered as (
    select
        corpus, scorer_id, count(*) as n_rows, count(*) filter (mean_nll is not null) as n_scored,
        count(*) filter (status = 'too_long') as n_too_long, count(*) filter (status = 'no_response') as n_no_response,
        count(*) filter (status = 'failed') as n_failed,
        sum(n_response_tokens) filter (mean_nll is not null) as n_response_tokens,
        sum(nll_sum) filter (mean_nll is not null) as nll_sum
    from scores
    group by corpus, scorer_id
)
select
    scorers.corpus, scorers.role, scorers.label, scorers.scorer_domain, scorers.complete,
    coalesce(covered.n_scored, 0) as n_scored, coalesce(covered.n_too_long, 0) as n_too_long,
    coalesce(covered.n_no_response, 0) as n_no_response, coalesce(covered.n_failed, 0) as n_failed,
    corpora.n_examples - coalesce(covered.n_rows, 0) as n_not_scored,
    covered.n_response_tokens::bigint as n_response_tokens,
    round(mean_nll(covered.nll_sum, covered.n_response_tokens), 6) as mean_nll,
    scorers.measure_id, scorers.scorer_id
from scorers
join corpora on corpora.corpus = scorers.corpus
left join covered on covered.corpus = scorers.corpus and covered.scorer_id = scorers.scorer_id
where $corpus is null or scorers.corpus = $corpus
order by scorers.corpus, scorers.role, scorers.label, scorers.scorer_id
