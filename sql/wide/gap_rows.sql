-- gap_rows(...) over a pool that holds each row's gap already, in place of the view of that name: one row is one example
-- under one aligned scorer. pool_gaps has the rows, made with sql/wide/gap.sql; pool_choice has one row that says which
-- domains they hold out and which eps they have. Other arguments are an error, never another gap.
-- Units and columns as in sql/views/gap_rows.sql, without n_assistant_turns, response_head, n_copies and losses, which a
-- pool does not hold. Key: corpus, aligned_id, example_id.
create or replace macro gap_rows(
    in_corpus := null, use_aligned := null, use_misaligned := null, use_benign := null, hold_out := [], eps := 1.0,
    reducer := 'mean', weights := null
) as table
select
    corpus, aligned_id, example_id, n_turns, n_chars, domain::varchar as domain,
    language::varchar as language, license::varchar as license, harm::varchar as harm, source::varchar as source,
    n_response_tokens, mean_nll_aligned, mean_nll_misaligned, mean_nll_benign, gap_abs, gap_rel, gap_contrast, sum_gap,
    n_losses_missing, n_benign_missing, n_misaligned > 0 and n_losses_missing = 0 as complete
from pool_gaps
where
    (in_corpus is null or corpus = in_corpus)
    and (use_aligned is null or aligned_id = use_aligned)
    and (
        select
            case
                when
                    list_sort(list_distinct(hold_out::varchar[])) = pool_choice.held_out and eps = pool_choice.eps
                    and use_misaligned is null and use_benign is null and reducer = 'mean' and weights is null
                    then true
                else error('these rows hold another gap')
            end
        from pool_choice
    )
