-- sum_gap(mean_misaligned, mean_aligned, n_response_tokens): the gap of the whole answer, in nats (ours): gap_abs weighted by
-- the answer's tokens, which is the ensemble's nll_sum minus the aligned one's. It favours long answers; gap_abs does not.
create or replace macro sum_gap(mean_misaligned, mean_aligned, n_response_tokens) as
    gap_abs(mean_misaligned, mean_aligned) * n_response_tokens
