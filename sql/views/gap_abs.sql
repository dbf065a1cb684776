-- gap_abs(mean_misaligned, mean_aligned): perplexity gap, in nats per token (Moore-Lewis difference; docs/recipe.md, "Score and ensemble").
-- Larger is better safe data: the misaligned models find the answer unlikely, the aligned one likely. Null if either is.
create or replace macro gap_abs(mean_misaligned, mean_aligned) as mean_misaligned - mean_aligned
