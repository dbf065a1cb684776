-- gap_rows(...): one row is one example under one aligned scorer, with the gap to the misaligned scorers of its measure.
-- This is the only place where losses become a gap. Key: corpus, aligned_id, example_id.
-- Arguments, all optional, by name:
--   in_corpus       one corpus; null: all
--   use_aligned     scorer id; null: every complete aligned scorer, each with rows of its own (usually there is one)
--   use_misaligned  list of scorer ids; null: every complete misaligned scorer of the aligned one's measure
--   use_benign      the same for benign scorers, which gap_contrast needs
--   hold_out        list of domains whose misaligned and benign scorers are left out; an unknown domain is an error, and
--                   so is a list that leaves a corpus no misaligned scorer (hold_out_unknown, hold_out_leaves_none)
--   eps             nats per token, for gap_rel
--   reducer         how the models of a role become one loss: mean, median, min, max, weighted (see ensemble)
--   weights         for weighted: one per scorer of use_misaligned, in its order; benign models then count alike
-- Units: mean_nll_* and gap_abs, gap_contrast in nats per token, gap_rel a ratio, sum_gap in nats, n_response_tokens in tokens.
-- A row that lacks the loss of any named scorer has no gap: it is still listed, with complete false and
-- n_losses_missing counting its missing aligned and misaligned losses (a named id that the store
-- lacks, or that has another role or measure, counts for every row); n_benign_missing counts benign ones, which gap_contrast alone needs. losses: aligned, misaligned, benign, each by id.
create or replace macro gap_rows(
    in_corpus := null, use_aligned := null, use_misaligned := null, use_benign := null, hold_out := [], eps := 1.0,
    reducer := 'mean', weights := null
) as table
with aligned as (
    select corpus, scorer_id as aligned_id, measure_id
    from scorers
    where
        role = 'aligned'
        and (in_corpus is null or corpus = in_corpus)
        and case when use_aligned is null then complete else scorer_id = use_aligned end
),

named as (
    select 'misaligned' as role, unnest(list_distinct(use_misaligned::varchar[])) as scorer_id
    union all
    select 'benign' as role, unnest(list_distinct(use_benign::varchar[])) as scorer_id
),

wanted as (
    select aligned.corpus, aligned.aligned_id, aligned.measure_id, named.role, named.scorer_id
    from aligned
    cross join named
    union all
    select aligned.corpus, aligned.aligned_id, aligned.measure_id, scorers.role, scorers.scorer_id
    from aligned
    join scorers on scorers.corpus = aligned.corpus and scorers.measure_id = aligned.measure_id
    where
        scorers.complete
        and (
            (scorers.role = 'misaligned' and use_misaligned is null)
            or (scorers.role = 'benign' and use_benign is null)
        )
),

faults as (
    select
        hold_out_unknown(
            hold_out::varchar[], list(distinct scorer_domain) filter (scorer_domain is not null), in_corpus
        ) as fault
    from scorers
    where in_corpus is null or corpus = in_corpus
    union all
    select hold_out_leaves_none(hold_out::varchar[], list(scorers.scorer_domain), wanted.corpus) as fault
    from wanted
    left join scorers on scorers.corpus = wanted.corpus and scorers.scorer_id = wanted.scorer_id
    where wanted.role = 'misaligned'
    group by wanted.corpus
),

-- place: 1 aligned, 2 misaligned, 3 benign. A named scorer that is absent, or has another role or measure, stays as a
-- null id: it matches no loss, so every row counts it as missing.
members as (
    select corpus, aligned_id, aligned_id as scorer_id, 1 as place
    from aligned
    union all
    select
        wanted.corpus, wanted.aligned_id, scorers.scorer_id, case wanted.role when 'misaligned' then 2 else 3 end as place
    from wanted
    left join scorers
        on
            scorers.corpus = wanted.corpus
            and scorers.scorer_id = wanted.scorer_id
            and scorers.role = wanted.role
            and scorers.measure_id = wanted.measure_id
    where not coalesce(list_contains(hold_out::varchar[], scorers.scorer_domain), false)
),

groups as (
    select
        corpus, aligned_id,
        count(*) filter (place = 2) as n_misaligned,
        count(*) filter (place = 3) as n_benign,
        list(list_extract(weights::double[], list_position(use_misaligned::varchar[], scorer_id)) order by scorer_id)
            filter (place = 2) as misaligned_weights
    from members
    group by corpus, aligned_id
),

-- Lists in a fixed order, not running sums: a float64 mean must not depend on the number of threads.
means as (
    select
        members.corpus, members.aligned_id, scores.example_id,
        max(scores.mean_nll) filter (members.place = 1) as aligned,
        max(scores.n_response_tokens) filter (members.place = 1) as n_response_tokens,
        list(scores.mean_nll order by scores.scorer_id) filter (members.place = 2) as misaligned,
        list(scores.mean_nll order by scores.scorer_id) filter (members.place = 3) as benign,
        list(
            {
                'place': members.place,
                'scorer_id': scores.scorer_id,
                'nll_sum': scores.nll_sum,
                'n_response_tokens': scores.n_response_tokens
            }
        ) as entries
    from members
    join scores on scores.corpus = members.corpus and scores.scorer_id = members.scorer_id
    where scores.mean_nll is not null
    group by members.corpus, members.aligned_id, scores.example_id
),

-- One row for each example of each group, scored or not.
ensembles as (
    select
        groups.corpus, groups.aligned_id, groups.n_misaligned, examples.example_id, examples.n_turns,
        examples.n_assistant_turns, examples.n_chars, examples.response_head, examples.domain, examples.language,
        examples.license, examples.harm, examples.source, examples.n_copies, means.n_response_tokens,
        -- Sorted afterwards: an ordered aggregate of structs takes twice the time.
        [
            {
                'scorer_id': entry.scorer_id,
                'nll_sum': entry.nll_sum,
                'n_response_tokens': entry.n_response_tokens
            } for entry in list_sort(means.entries)
        ] as losses,
        means.aligned as mean_nll_aligned,
        ensemble(means.misaligned, groups.n_misaligned, reducer, groups.misaligned_weights) as mean_nll_misaligned,
        ensemble(
            means.benign, groups.n_benign, case reducer when 'weighted' then 'mean' else reducer end, null::double[]
        ) as mean_nll_benign,
        (means.aligned is null)::integer
        + groups.n_misaligned - coalesce(list_count(means.misaligned), 0) as n_losses_missing,
        groups.n_benign - coalesce(list_count(means.benign), 0) as n_benign_missing
    from groups
    join examples on examples.corpus = groups.corpus
    left join means
        on
            means.corpus = groups.corpus
            and means.aligned_id = groups.aligned_id
            and means.example_id = examples.example_id
)

select
    corpus, aligned_id, example_id, n_turns, n_assistant_turns, n_chars, response_head, domain, language, license,
    harm, source, n_copies, n_response_tokens, losses, mean_nll_aligned, mean_nll_misaligned, mean_nll_benign,
    gap_abs(mean_nll_misaligned, mean_nll_aligned) as gap_abs,
    gap_rel(mean_nll_misaligned, mean_nll_aligned, eps) as gap_rel,
    gap_contrast(mean_nll_misaligned, mean_nll_benign) as gap_contrast,
    sum_gap(mean_nll_misaligned, mean_nll_aligned, n_response_tokens) as sum_gap,
    n_losses_missing, n_benign_missing,
    n_misaligned > 0 and n_losses_missing = 0 as complete
from ensembles
where (select bool_and(case when fault is null then true else error(fault) end) from faults)
