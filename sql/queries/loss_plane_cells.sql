-- One row is one cell of the plane of aligned against misaligned loss under one aligned scorer; empty cells are absent.
-- Units: *_low and *_high bound mean_nll_aligned and mean_nll_misaligned in nats per token, n_rows counts examples. Both axes
-- have the same range, between the quantiles clip and 1 - clip of both losses; cells at the edge also hold what lies beyond.
-- Rows without a gap are in no cell. Key: corpus, aligned_id, x, y.
-- param: corpus text null one corpus; null: all
-- param: cells integer 40 cells along either axis
-- param: clip double 0.005 share of losses at either end that the range leaves out
-- param: hold_out text[] [] domains whose misaligned models are left out

with judged as (
    select corpus, aligned_id, mean_nll_aligned, mean_nll_misaligned
    from gap_rows(in_corpus := $corpus, hold_out := $hold_out)
    where complete
),

ranges as (
    select
        corpus, aligned_id,
        least(quantile_disc(mean_nll_aligned, $clip), quantile_disc(mean_nll_misaligned, $clip)) as low,
        greatest(quantile_disc(mean_nll_aligned, 1 - $clip), quantile_disc(mean_nll_misaligned, 1 - $clip)) as high
    from judged
    group by corpus, aligned_id
),

placed as (
    select
        judged.corpus, judged.aligned_id, ranges.low, (ranges.high - ranges.low) / $cells as width,
        case
            when ranges.high > ranges.low
                then greatest(0, least(floor((mean_nll_aligned - ranges.low) / (ranges.high - ranges.low) * $cells), $cells - 1))
            else 0
        end::integer as x,
        case
            when ranges.high > ranges.low
                then greatest(0, least(floor((mean_nll_misaligned - ranges.low) / (ranges.high - ranges.low) * $cells), $cells - 1))
            else 0
        end::integer as y
    from judged
    join ranges on ranges.corpus = judged.corpus and ranges.aligned_id = judged.aligned_id
)

select
    corpus, aligned_id, x, y, low + x * width as aligned_low, low + (x + 1) * width as aligned_high,
    low + y * width as misaligned_low, low + (y + 1) * width as misaligned_high, count(*) as n_rows
from placed
group by corpus, aligned_id, x, y, low, width
order by corpus, aligned_id, x, y
