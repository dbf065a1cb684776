-- One row is one conversation of a corpus, for a list of ids; unknown ids have no row.
-- Units: messages is canonical JSON, n_copies counts kept records. Key: example_id.
-- param: corpus text required corpus name
-- param: ids text[] required example ids
select example_id, messages, source, n_copies
from examples
where corpus = $corpus and list_contains($ids::varchar[], example_id)
order by example_id
