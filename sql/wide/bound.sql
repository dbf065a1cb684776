-- One row is one example of the table wide_rows (see wide/gap), with what no gap_rel of it can exceed, a ratio.
-- `bound` is the gap_rel (eps 1) of the `size` largest misaligned losses that there are: no mean of `size` of them is larger; with
-- size 1 no other reducer of any of them is either. Null where fewer are there: such a row has no gap over `size` models.
-- Units: losses in nats per token. Key: place.
-- param: size integer required misaligned scorers that a gap is over
with largest as (
    select place, mean_nll_aligned, list_slice(list_reverse_sort(misaligned), 1, $size) as losses
    from wide_rows
)

select place, gap_rel(ensemble(losses, $size, 'mean', null::double[]), mean_nll_aligned, 1.0) as bound
from largest
