-- One row is one score (gap_rel, gap_abs, gap_contrast) of a corpus under one aligned scorer, with its quantiles.
-- Units: gap_abs and gap_contrast in nats per token, gap_rel a ratio; n_rows counts examples, n_null those without the score.
-- Key: corpus, aligned_id, score.
-- param: corpus text null one corpus; null: all
-- param: hold_out text[] [] domains whose misaligned models are left out
-- param: eps double 1.0 nats per token, for gap_rel
with spread as (
    select
        corpus, aligned_id, count(*) as n_rows,
        [
            {
                'score': 'gap_rel', 'n_known': count(gap_rel), 'minimum': min(gap_rel), 'maximum': max(gap_rel),
                'quantiles': quantile_cont(gap_rel, [0.01, 0.1, 0.5, 0.9, 0.99])
            },
            {
                'score': 'gap_abs', 'n_known': count(gap_abs), 'minimum': min(gap_abs), 'maximum': max(gap_abs),
                'quantiles': quantile_cont(gap_abs, [0.01, 0.1, 0.5, 0.9, 0.99])
            },
            {
                'score': 'gap_contrast', 'n_known': count(gap_contrast), 'minimum': min(gap_contrast),
                'maximum': max(gap_contrast), 'quantiles': quantile_cont(gap_contrast, [0.01, 0.1, 0.5, 0.9, 0.99])
            }
        ] as scores
    from gap_rows(in_corpus := $corpus, hold_out := $hold_out, eps := $eps)
    group by corpus, aligned_id
),

long as (
    select corpus, aligned_id, n_rows, unnest(scores, recursive := true)
    from spread
)
select
    corpus, aligned_id, score, n_rows, n_rows - n_known as n_null,
    round(minimum, 6) as minimum, round(quantiles[1], 6) as p01, round(quantiles[2], 6) as p10,
    round(quantiles[3], 6) as median, round(quantiles[4], 6) as p90,
    round(quantiles[5], 6) as p99, round(maximum, 6) as maximum
from long
order by corpus, aligned_id, score
