-- One row is one example of a corpus as a candidate for a mix, with its losses and gap under exactly the named scorers.
-- Units: mean_nll_*, gap_abs and gap_contrast in nats per token, gap_rel a ratio, sum_gap in nats, counts in messages and tokens. With no
-- aligned scorer named there is no gap: complete is false and every loss null. Key: example_id.
-- param: corpus text required corpus name
-- param: aligned text null id of the aligned scorer; null: none, and so no gap
-- param: misaligned text[] [] ids of the misaligned scorers, hold_out applied
-- param: benign text[] [] ids of the benign scorers, hold_out applied
-- param: eps double 1.0 nats per token, for gap_rel
-- param: reducer text mean how several models' losses become one: mean, median, min, max, weighted
-- param: weights double[] [] for weighted: one weight per misaligned scorer, in their order
select
    examples.example_id, examples.n_turns, examples.n_assistant_turns, examples.n_chars, examples.response_head,
    examples.domain, examples.language, examples.license, examples.harm, examples.source, examples.n_copies,
    gaps.n_response_tokens, gaps.losses, gaps.mean_nll_aligned, gaps.mean_nll_misaligned, gaps.mean_nll_benign,
    gaps.gap_abs, gaps.gap_rel, gaps.gap_contrast, gaps.sum_gap, gaps.n_losses_missing, coalesce(gaps.complete, false) as complete
from examples
left join
    gap_rows(
        in_corpus := $corpus, use_aligned := coalesce($aligned, ''), use_misaligned := $misaligned,
        use_benign := $benign, eps := $eps, reducer := $reducer, weights := $weights
    ) as gaps
    on gaps.corpus = examples.corpus and gaps.example_id = examples.example_id
where examples.corpus = $corpus
order by examples.example_id
