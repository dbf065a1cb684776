-- One row is one example of a corpus under one aligned scorer, in order of the score, with its place and share of rows below.
-- Units: mean_nll_* and gap_abs in nats per token, score as the parameter says, percentile a fraction (0 to 1) of the rows
-- with that score whose score is no higher; rank 1 is the largest score; place counts from 1 in the requested order and is what
-- `after` takes; n_fitting counts examples that fit, on all pages; opening is the first 240 characters of the first turn
-- that is not a system turn, and response_head is cut there too. Rows without the score are left out unless one id is given. Key: aligned_id, place.
-- param: corpus text required corpus name
-- param: aligned text null id of the aligned scorer; null: every complete one
-- param: id text null one whole example id, scored or not; null: all
-- param: score text gap_rel gap_rel, gap_abs, gap_contrast or sum_gap
-- param: direction integer 1 1: largest score first; -1: smallest first
-- param: after integer 0 place of the last row of the page before
-- param: n integer 20 rows to return
-- param: search text null text that the messages' JSON must hold, whatever its case
-- param: source text null one source; null: all
-- param: domain text null one domain; null: all
-- param: low double null least score, included
-- param: high double null largest score, included
-- param: aligned_low double null least mean_nll_aligned, included
-- param: aligned_high double null largest mean_nll_aligned, included
-- param: misaligned_low double null least mean_nll_misaligned, included
-- param: misaligned_high double null largest mean_nll_misaligned, included
-- param: hold_out text[] [] domains whose misaligned models are left out
-- param: eps double 1.0 nats per token, for gap_rel

with judged as (
    select
        corpus, aligned_id, example_id, response_head, domain, source, n_response_tokens, mean_nll_aligned,
        mean_nll_misaligned, gap_abs, complete,
        gap_named($score, gap_rel, gap_abs, gap_contrast, sum_gap) as score
    from gap_rows(in_corpus := $corpus, hold_out := $hold_out, eps := $eps)
    where $aligned is null or aligned_id = $aligned
),

ranked as (
    select
        corpus, aligned_id, example_id, response_head, domain, source, n_response_tokens, mean_nll_aligned,
        mean_nll_misaligned, gap_abs, score,
        case when score is not null then
            row_number() over (partition by aligned_id order by score desc nulls last, example_id)
        end as rank,
        case when score is not null then
            cume_dist() over (partition by aligned_id, score is null order by score)
        end as percentile,
        row_number() over (partition by aligned_id order by score * $direction desc nulls last, example_id) as place
    from judged
),

fitting as (
    select
        ranked.corpus, ranked.aligned_id, ranked.example_id, ranked.response_head, ranked.domain, ranked.source,
        ranked.n_response_tokens, ranked.mean_nll_aligned, ranked.mean_nll_misaligned, ranked.gap_abs, ranked.score,
        ranked.rank, ranked.percentile, ranked.place, count(*) over () as n_fitting
    from ranked
    where
        case when $id is not null then ranked.example_id = $id else ranked.score is not null end
        and ($source is null or ranked.source = $source)
        and ($domain is null or ranked.domain = $domain)
        and ($low is null or ranked.score >= $low)
        and ($high is null or ranked.score <= $high)
        and ($aligned_low is null or ranked.mean_nll_aligned >= $aligned_low)
        and ($aligned_high is null or ranked.mean_nll_aligned <= $aligned_high)
        and ($misaligned_low is null or ranked.mean_nll_misaligned >= $misaligned_low)
        and ($misaligned_high is null or ranked.mean_nll_misaligned <= $misaligned_high)
        and (
            $search is null
            or ranked.example_id in (
                select examples.example_id
                from examples
                where examples.corpus = $corpus and contains(lower(examples.messages), lower($search))
            )
        )
),

paged as (
    select
        corpus, aligned_id, example_id, response_head, domain, source, n_response_tokens, mean_nll_aligned,
        mean_nll_misaligned, gap_abs, score, rank, percentile, place, n_fitting
    from fitting
    where $after = 0 or place > $after
    order by aligned_id, place
    limit $n
)

select
    paged.aligned_id, paged.place, paged.rank, round(paged.percentile, 6) as percentile, round(paged.score, 6) as score,
    round(paged.gap_abs, 6) as gap_abs, round(paged.mean_nll_aligned, 6) as mean_nll_aligned,
    round(paged.mean_nll_misaligned, 6) as mean_nll_misaligned, paged.n_response_tokens,
    left(
        case
            when json_extract_string(examples.messages, '$[0].role') in ('system', 'developer')
                then json_extract_string(examples.messages, '$[1].content')
            else json_extract_string(examples.messages, '$[0].content')
        end,
        240
    ) as opening,
    left(paged.response_head, 240) as response_head, paged.domain, paged.source, paged.corpus, paged.example_id, paged.n_fitting
from paged
join examples on examples.corpus = paged.corpus and examples.example_id = paged.example_id
order by paged.aligned_id, paged.place
