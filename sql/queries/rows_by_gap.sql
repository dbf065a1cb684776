-- One row is one example of a corpus under one aligned scorer, in the requested order, with its rank and share of rows below.
-- Units: mean_nll_* and gap_abs in nats per token, score as the parameter says, percentile a fraction (0 to 1) of the rows
-- with that score whose score is no higher; rank 1 is the largest score, ties by example_id; n_fitting counts examples that
-- fit, on all pages; opening is the first 240 characters of the first turn that is not a system turn, and response_head is
-- cut there too; place counts from 1 on each page. Rows without the score are left out unless one id is given. Key: aligned_id, place.
-- param: corpus text required corpus name
-- param: aligned text null id of the aligned scorer; null: every complete one
-- param: id text null one whole example id, scored or not; null: all
-- param: score text gap_rel gap_rel, gap_abs, gap_contrast or sum_gap
-- param: order text best best: largest score first; worst: smallest first; shuffled: by a hash of id and seed (row_key)
-- param: seed integer 0 for shuffled: which shuffle
-- param: after text null example id of the last row of the page before
-- param: n integer 20 rows to return
-- param: texts integer 1 1: with opening and response_head; 0: both null, which is faster
-- param: search text(1200) null text that the messages' JSON must hold, whatever its case
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

with judged as materialized (
    select
        aligned_id, example_id, domain, source, n_response_tokens, mean_nll_aligned, mean_nll_misaligned, gap_abs,
        gap_named($score, gap_rel, gap_abs, gap_contrast, sum_gap) as score
    from gap_rows(in_corpus := $corpus, hold_out := $hold_out, eps := $eps)
    where $aligned is null or aligned_id = $aligned
),

keyed as (
    select
        aligned_id, example_id, domain, source, n_response_tokens, mean_nll_aligned, mean_nll_misaligned, gap_abs,
        score,
        row_key($order, score, example_id, $seed) as key
    from judged
    where case when $id is not null then example_id = $id else score is not null end
),

fitting as (
    select
        aligned_id, example_id, domain, source, n_response_tokens, mean_nll_aligned, mean_nll_misaligned, gap_abs,
        score, key
    from keyed
    where
        ($source is null or source = $source)
        and ($domain is null or domain = $domain)
        and ($low is null or score >= $low)
        and ($high is null or score <= $high)
        and ($aligned_low is null or mean_nll_aligned >= $aligned_low)
        and ($aligned_high is null or mean_nll_aligned <= $aligned_high)
        and ($misaligned_low is null or mean_nll_misaligned >= $misaligned_low)
        and ($misaligned_high is null or mean_nll_misaligned <= $misaligned_high)
        and (
            $search is null
            or example_id in (
                -- ASCII by a pattern, since lower() writes every text anew, which takes as long as reading it. Among
                -- letters beyond ASCII a pattern misses pairs that lower() makes one, as that of the dotted capital I.
                select examples.example_id
                from examples
                where
                    examples.corpus = $corpus
                    and case
                        when strlen($search) = length($search)
                            then
                                regexp_matches(
                                    examples.messages, replace(regexp_escape(lower($search)), 'i', '[iİ]'), 'i'
                                )
                        else contains(lower(examples.messages), lower($search))
                    end
            )
        )
),

-- A page follows the row that `after` names, whether that row fits or not: rows that came or went shift nothing.
paged as (
    select
        fitting.aligned_id, fitting.example_id, fitting.domain, fitting.source, fitting.n_response_tokens,
        fitting.mean_nll_aligned, fitting.mean_nll_misaligned, fitting.gap_abs, fitting.score, fitting.key
    from fitting
    left join keyed as anchor on anchor.example_id = $after and anchor.aligned_id = fitting.aligned_id
    where $after is null or (fitting.key, fitting.example_id) > (anchor.key, anchor.example_id)
    order by fitting.aligned_id, fitting.key, fitting.example_id
    limit $n
),

-- How many rows lie at or below each score of the page. Counted for those alone: to sort all rows takes longer.
counts as (
    select
        aligned_id, count(score) as n_scored,
        histogram(
            score, (select coalesce(list(distinct score order by score), [0.0]) from paged where score is not null)
        ) as by_score
    from judged
    group by aligned_id
),

bounds as (
    select aligned_id, n_scored, unnest(map_entries(by_score), recursive := true)
    from counts
),

below as (
    select aligned_id, n_scored, key as score, sum(value) over (partition by aligned_id order by key) as n_below
    from bounds
),

ties as (
    select paged.aligned_id, paged.example_id, count(*) as n_before
    from paged
    join judged
        on
            judged.aligned_id = paged.aligned_id and judged.score = paged.score
            and judged.example_id <= paged.example_id
    group by paged.aligned_id, paged.example_id
)

select
    paged.aligned_id,
    row_number() over (partition by paged.aligned_id order by paged.key, paged.example_id) as place,
    below.n_scored - below.n_below + ties.n_before as rank,
    round(below.n_below / below.n_scored, 6) as percentile, round(paged.score, 6) as score,
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
    left(examples.response_head, 240) as response_head, paged.domain, paged.source, $corpus as corpus,
    paged.example_id, (select count(*) from fitting) as n_fitting
from paged
left join below on below.aligned_id = paged.aligned_id and below.score = paged.score
left join ties on ties.aligned_id = paged.aligned_id and ties.example_id = paged.example_id
left join examples
    on $texts = 1 and examples.corpus = $corpus and examples.example_id = paged.example_id
order by paged.aligned_id, place
