-- One row is one depth: the n examples with the largest score under one aligned scorer, and how many open like refusals.
-- Units: n_rows and n_refusals count examples, refusal_share is a fraction (0 to 1); depth 'all' covers every row with the
-- score. The refusal rule is curator.corpus.refusals.is_refusal (docs/recipe.md, "refusal"). Key: corpus, aligned_id, depth.
-- param: n integer 100 rows at the top
-- param: rule text v1 refusal rule, v1 or v2
-- param: score text gap_rel gap_rel, gap_abs, gap_contrast or sum_gap
-- param: corpus text null one corpus; null: all
-- param: hold_out text[] [] domains whose misaligned models are left out
-- param: eps double 1.0 nats per token, for gap_rel
with judged as (
    select
        corpus, aligned_id, example_id, response_head,
        gap_named($score, gap_rel, gap_abs, gap_contrast, sum_gap) as score
    from gap_rows(in_corpus := $corpus, hold_out := $hold_out, eps := $eps)
),

ranked as (
    select
        corpus, aligned_id, is_refusal(response_head, $rule) as refusal,
        row_number() over (partition by corpus, aligned_id order by score desc, example_id) as rank
    from judged
    where score is not null
),

depths as (
    select corpus, aligned_id, refusal, 'top' as depth
    from ranked
    where rank <= $n
    union all
    select corpus, aligned_id, refusal, 'all' as depth
    from ranked
)
select
    corpus, aligned_id, depth, count(*) as n_rows, count(*) filter (refusal) as n_refusals,
    round(count(*) filter (refusal) / count(*), 4) as refusal_share
from depths
group by corpus, aligned_id, depth
order by corpus, aligned_id, depth
