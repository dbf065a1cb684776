-- One row is one source (ingested file) under one aligned scorer, with the gap over its examples.
-- Units: n_rows and n_without_gap count examples, gap_abs_* in nats per token, gap_rel_* ratios. Key: corpus, aligned_id, source.
-- param: corpus text null one corpus; null: all
-- param: hold_out text[] [] domains whose misaligned models are left out
-- param: eps double 1.0 nats per token, for gap_rel
select
    corpus, aligned_id, source, count(*) as n_rows, count(*) filter (not complete) as n_without_gap,
    round(quantile_cont(gap_abs, 0.5), 6) as gap_abs_median, round(quantile_cont(gap_abs, 0.9), 6) as gap_abs_p90,
    round(quantile_cont(gap_rel, 0.5), 6) as gap_rel_median, round(quantile_cont(gap_rel, 0.9), 6) as gap_rel_p90
from gap_rows(in_corpus := $corpus, hold_out := $hold_out, eps := $eps)
group by corpus, aligned_id, source
order by corpus, aligned_id, source
