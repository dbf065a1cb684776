-- One row is one score (gap_rel, gap_abs, gap_contrast) of a corpus under one aligned scorer, with its quantiles.
-- Units: gap_abs and gap_contrast in nats per token, gap_rel a ratio; n_rows counts examples, n_null those without the score.
-- Key: corpus, aligned_id, score.
-- param: corpus text null one corpus; null: all
-- param: hold_out text[] [] domains whose misaligned models are left out
-- param: eps double 1.0 nats per token, for gap_rel
with long as (
    select
        corpus, aligned_id,
        unnest(
            [
                {'score': 'gap_rel', 'gap': gap_rel}, {'score': 'gap_abs', 'gap': gap_abs},
                {'score': 'gap_contrast', 'gap': gap_contrast}
            ],
            recursive := true
        )
    from gap_rows(in_corpus := $corpus, hold_out := $hold_out, eps := $eps)
)
select
    corpus, aligned_id, score, count(*) as n_rows, count(*) - count(gap) as n_null,
    round(min(gap), 6) as minimum, round(quantile_cont(gap, 0.01), 6) as p01, round(quantile_cont(gap, 0.1), 6) as p10,
    round(quantile_cont(gap, 0.5), 6) as median, round(quantile_cont(gap, 0.9), 6) as p90,
    round(quantile_cont(gap, 0.99), 6) as p99, round(max(gap), 6) as maximum
from long
group by corpus, aligned_id, score
order by corpus, aligned_id, score
