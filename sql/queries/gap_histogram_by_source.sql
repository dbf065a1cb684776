-- One row is one bin of the score and one source under one aligned scorer; empty ones are absent.
-- Units: low and high as the score (gap_rel a ratio, sum_gap nats, the others nats per token), n_rows counts examples. Bins have
-- equal width between the quantiles clip and 1 - clip; the first and the last also hold what lies beyond, and their
-- outer edges are the smallest and the largest score. Rows without the score are in no bin. Key: corpus, aligned_id, bin, source.
-- param: corpus text null one corpus; null: all
-- param: bins integer 40 number of bins
-- param: clip double 0.005 share of rows at either end that the bins' range leaves out
-- param: score text gap_rel gap_rel, gap_abs, gap_contrast or sum_gap
-- param: hold_out text[] [] domains whose misaligned models are left out
-- param: eps double 1.0 nats per token, for gap_rel

with judged as (
    select
        corpus, aligned_id, coalesce(source, '') as source,
        gap_named($score, gap_rel, gap_abs, gap_contrast, sum_gap) as score
    from gap_rows(in_corpus := $corpus, hold_out := $hold_out, eps := $eps)
),

ranges as (
    select
        corpus, aligned_id, min(score) as lowest, max(score) as highest, quantile_disc(score, $clip) as low,
        quantile_disc(score, 1 - $clip) as high
    from judged
    where score is not null
    group by corpus, aligned_id
),

binned as (
    select
        judged.corpus, judged.aligned_id, judged.source, ranges.lowest, ranges.highest, ranges.low,
        (ranges.high - ranges.low) / $bins as width,
        case
            when ranges.high > ranges.low
                then greatest(0, least(floor((judged.score - ranges.low) / (ranges.high - ranges.low) * $bins), $bins - 1))
            else 0
        end::integer as bin
    from judged
    join ranges on ranges.corpus = judged.corpus and ranges.aligned_id = judged.aligned_id
    where judged.score is not null
)

select
    corpus, aligned_id, bin, source,
    case when bin = 0 then lowest else low + bin * width end as low,
    case when bin = $bins - 1 then highest else low + (bin + 1) * width end as high,
    count(*) as n_rows
from binned
group by corpus, aligned_id, bin, source, lowest, highest, low, width
order by corpus, aligned_id, bin, source
