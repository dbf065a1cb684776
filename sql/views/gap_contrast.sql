-- gap_contrast(mean_misaligned, mean_benign): misaligned minus benign twins, in nats per token (ours; docs/recipe.md, "Score and ensemble").
-- The twins saw good answers of the same narrow domains, so what any such fine-tuning forgets cancels. Null if either is.
create or replace macro gap_contrast(mean_misaligned, mean_benign) as mean_misaligned - mean_benign
