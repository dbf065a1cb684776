-- One row is one conversation of a corpus, for a list of ids; unknown ids have no row.
-- Units: messages is canonical JSON, n_copies counts kept records. Key: example_id.
-- param: corpus text required corpus name
-- param: ids text[] required whole example ids (rows_by_prefix takes beginnings)
with wanted as (
    select unnest(list_distinct($ids::varchar[])) as example_id
)
select examples.example_id, examples.messages, examples.source, examples.n_copies
from examples
join wanted on wanted.example_id = examples.example_id
where
    examples.corpus = $corpus
    -- For one id, or few that lie close, the files' statistics rule most rows out.
    and examples.example_id between list_min($ids::varchar[]) and list_max($ids::varchar[])
order by examples.example_id
