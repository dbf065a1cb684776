-- One row is one pair of misaligned scorers of one measure: how far they agree on which rows are safe.
-- Units: n_rows counts examples that both scored and the aligned one too; pearson and spearman (on ranks) are correlations
-- (-1 to 1) of gap_abs under either model alone, null where one of them does not vary. Key: corpus, aligned_id, first_id, second_id.
-- param: corpus text null one corpus; null: all
with single as (
    select
        aligned.corpus, aligned.scorer_id as aligned_id, other.scorer_id, other.label, aligned.example_id,
        gap_abs(other.mean_nll, aligned.mean_nll) as gap
    from scores as aligned
    join scorers as a on a.corpus = aligned.corpus and a.scorer_id = aligned.scorer_id and a.role = 'aligned'
    join scorers as m on m.corpus = a.corpus and m.measure_id = a.measure_id and m.role = 'misaligned'
    join scores as other
        on other.corpus = m.corpus and other.scorer_id = m.scorer_id and other.example_id = aligned.example_id
    where
        a.complete and m.complete and aligned.mean_nll is not null and other.mean_nll is not null
        and ($corpus is null or a.corpus = $corpus)
),

pairs as (
    select
        one.corpus, one.aligned_id, one.scorer_id as first_id, one.label as first_label, two.scorer_id as second_id,
        two.label as second_label, one.gap as first_gap, two.gap as second_gap, one.example_id
    from single as one
    join single as two
        on
            two.corpus = one.corpus
            and two.aligned_id = one.aligned_id
            and two.example_id = one.example_id
            and two.scorer_id > one.scorer_id
),

ranked as (
    select
        corpus, aligned_id, first_id, first_label, second_id, second_label, first_gap, second_gap,
        rank() over (partition by corpus, aligned_id, first_id, second_id order by first_gap) as first_rank,
        rank() over (partition by corpus, aligned_id, first_id, second_id order by second_gap) as second_rank
    from pairs
)
select
    corpus, first_label, second_label, count(*) as n_rows, round(nullif(corr(first_gap, second_gap), 'nan'::double), 4) as pearson,
    round(nullif(corr(first_rank, second_rank), 'nan'::double), 4) as spearman, aligned_id, first_id, second_id
from ranked
group by corpus, aligned_id, first_id, first_label, second_id, second_label
order by corpus, aligned_id, first_id, second_id
