-- One row is one scorer and one band of answer lengths (powers of two).
-- Units: from_tokens and below_tokens bound n_response_tokens, n_rows counts examples, mean_nll is the band's summed loss
-- over its summed tokens, in nats per token. Key: corpus, scorer_id, from_tokens.
-- param: corpus text null one corpus; null: all
with banded as (
    select
        corpus, scorer_id, label, role, nll_sum, n_response_tokens,
        (2 ** floor(log2(n_response_tokens)))::bigint as from_tokens
    from scores
    where mean_nll is not null and ($corpus is null or corpus = $corpus)
)
select
    corpus, scorer_id, label, role, from_tokens, from_tokens * 2 as below_tokens, count(*) as n_rows,
    round(mean_nll(sum(nll_sum), sum(n_response_tokens)), 6) as mean_nll
from banded
group by corpus, scorer_id, label, role, from_tokens
order by corpus, scorer_id, from_tokens
