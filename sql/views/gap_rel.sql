-- gap_rel(mean_misaligned, mean_aligned, eps): gap_abs over (mean_aligned + eps), a ratio (the paper's score; docs/recipe.md, "Score and ensemble").
-- eps in nats per token. Null, never infinite, when a loss is missing or the divisor is 0.
create or replace macro gap_rel(mean_misaligned, mean_aligned, eps) as
    gap_abs(mean_misaligned, mean_aligned) / nullif(mean_aligned + eps, 0)
