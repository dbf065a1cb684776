-- One row is one example under one complete aligned scorer (usually there is one), with the gap to every complete
-- misaligned scorer of its measure, eps 1 and nothing held out; gap_rows(...) takes other choices. The formulas are
-- gap_abs, gap_rel, gap_contrast and sum_gap.
-- Units: mean_nll_*, gap_abs and gap_contrast in nats per token, gap_rel a ratio, sum_gap in nats; null where a loss is missing, and then
-- complete is false and n_losses_missing counts them. Key: corpus, aligned_id, example_id.
create or replace view gap as
select
    corpus, aligned_id, example_id, n_turns, n_assistant_turns, n_chars, response_head, domain, language, license,
    harm, source, n_copies, n_response_tokens, losses, mean_nll_aligned, mean_nll_misaligned, mean_nll_benign,
    gap_abs, gap_rel, gap_contrast, sum_gap, n_losses_missing, n_benign_missing, complete
from gap_rows()
