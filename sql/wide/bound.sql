-- One row is one example of the table wide_rows (see wide/gap), with what no gap_rel of it can exceed, a ratio.
-- `bound` is the gap_rel (eps 1) of the largest misaligned loss: no mean, median, minimum or weighted mean of any of these losses is
-- larger, but for rounding. Null where there is none. Units: losses in nats per token. Key: place.
select place, gap_rel(list_max(misaligned), mean_nll_aligned, 1.0) as bound
from wide_rows
