-- One row is one bin of equal width between the smallest and the largest score under one aligned scorer; empty bins are absent.
-- Units: low and high as the score (gap_rel a ratio, sum_gap nats, the others nats per token), n_rows counts examples; the last bin
-- holds its upper edge. Rows without the score are in no bin. Key: corpus, aligned_id, bin.
-- param: bins integer 20 number of bins
-- param: score text gap_rel gap_rel, gap_abs, gap_contrast or sum_gap
-- param: corpus text null one corpus; null: all
-- param: hold_out text[] [] domains whose misaligned models are left out
-- param: eps double 1.0 nats per token, for gap_rel
with judged as (
    select
        corpus, aligned_id, example_id,
        gap_named($score, gap_rel, gap_abs, gap_contrast, sum_gap) as score
    from gap_rows(in_corpus := $corpus, hold_out := $hold_out, eps := $eps)
),

ranges as (
    select corpus, aligned_id, min(score) as low, max(score) as high
    from judged
    group by corpus, aligned_id
),

binned as (
    select
        judged.corpus, judged.aligned_id, ranges.low, (ranges.high - ranges.low) / $bins as width,
        case
            when ranges.high > ranges.low
                then least(floor((judged.score - ranges.low) / (ranges.high - ranges.low) * $bins)::integer, $bins - 1)
            else 0
        end as bin
    from judged
    join ranges on ranges.corpus = judged.corpus and ranges.aligned_id = judged.aligned_id
    where judged.score is not null
)
select
    corpus, aligned_id, bin, round(low + bin * width, 6) as low, round(low + (bin + 1) * width, 6) as high,
    count(*) as n_rows
from binned
group by corpus, aligned_id, bin, low, width
order by corpus, aligned_id, bin
