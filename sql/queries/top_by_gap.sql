-- One row is one example, the largest gap first (safest: aligned finds it likely, misaligned unlikely); ties by corpus and example_id.
-- Units: mean_nll_* and gap_abs in nats per token, gap_rel a ratio, score as the parameter says.
-- Rows without that score are left out (missing_losses counts them). Key: rank.
-- param: n integer 20 rows to return
-- param: score text gap_rel gap_rel, gap_abs, gap_contrast or sum_gap
-- param: corpus text null one corpus; null: all
-- param: hold_out text[] [] domains whose misaligned models are left out
-- param: eps double 1.0 nats per token, for gap_rel
with judged as (
    select
        corpus, aligned_id, example_id, response_head, domain, source, n_response_tokens, mean_nll_aligned,
        mean_nll_misaligned, gap_abs, gap_rel,
        gap_named($score, gap_rel, gap_abs, gap_contrast, sum_gap) as score
    from gap_rows(in_corpus := $corpus, hold_out := $hold_out, eps := $eps)
)
select
    row_number() over (order by score desc, corpus, example_id, aligned_id) as rank,
    round(score, 6) as score, round(gap_rel, 6) as gap_rel, round(gap_abs, 6) as gap_abs,
    round(mean_nll_aligned, 6) as mean_nll_aligned, round(mean_nll_misaligned, 6) as mean_nll_misaligned,
    n_response_tokens, response_head, domain, source, corpus, aligned_id, example_id
from judged
where score is not null
order by rank
limit $n
