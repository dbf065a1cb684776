-- One row is one example of the table wide_rows (some rows of a pool, see curator.query.gaps), with its gap.
-- wide_rows has place, mean_nll_aligned, misaligned and benign (lists of the mean losses that there are, by scorer id) and
-- n_response_tokens. Units: mean_nll_*, gap_abs and gap_contrast in nats per token, gap_rel a ratio, sum_gap in nats. The same
-- macros as in gap_rows, and a row that lacks a loss has no gap here either. In no promised order: place says. Key: place.
-- param: n_misaligned integer required misaligned scorers of the gap
-- param: n_benign integer required benign scorers
-- param: eps double 1.0 nats per token, for gap_rel
-- param: reducer text mean how several models' losses become one: mean, median, min, max, weighted
-- param: weights double[] [] for weighted: one weight per misaligned scorer, in their order
with means as (
    select
        place, mean_nll_aligned, n_response_tokens,
        ensemble(misaligned, $n_misaligned, $reducer, $weights) as mean_nll_misaligned,
        ensemble(benign, $n_benign, case $reducer when 'weighted' then 'mean' else $reducer end, null::double[]) as mean_nll_benign
    from wide_rows
)

select
    place, mean_nll_aligned, mean_nll_misaligned, mean_nll_benign,
    gap_abs(mean_nll_misaligned, mean_nll_aligned) as gap_abs,
    gap_rel(mean_nll_misaligned, mean_nll_aligned, $eps) as gap_rel,
    gap_contrast(mean_nll_misaligned, mean_nll_benign) as gap_contrast,
    sum_gap(mean_nll_misaligned, mean_nll_aligned, n_response_tokens) as sum_gap
from means
