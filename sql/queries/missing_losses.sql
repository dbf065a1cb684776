-- One row is one scorer and one reason for which examples of its corpus lack its loss, and so lack a gap.
-- Units: n_rows counts examples; status 'not_scored' stands for examples outside what the scorer read so far (or outside
-- its sample); first_example_id is the smallest id concerned. Key: corpus, scorer_id, status, reason.
-- param: corpus text null one corpus; null: all
select
    scorers.corpus, scorers.role, scorers.label, coalesce(scores.status, 'not_scored') as status, scores.reason,
    count(*) as n_rows, min(examples.example_id) as first_example_id, scorers.scorer_id
from scorers
join examples on examples.corpus = scorers.corpus
left join scores
    on
        scores.corpus = scorers.corpus
        and scores.scorer_id = scorers.scorer_id
        and scores.example_id = examples.example_id
where scores.mean_nll is null and ($corpus is null or scorers.corpus = $corpus)
group by scorers.corpus, scorers.role, scorers.label, scores.status, scores.reason, scorers.scorer_id
order by scorers.corpus, scorers.scorer_id, scores.status, scores.reason
