-- One row is one conversation whose id starts as asked: tables show the first digits alone.
-- Units: messages is canonical JSON, n_copies counts kept records. Key: corpus, example_id.
-- param: prefix text required first digits of an example id
-- param: corpus text null one corpus; null: all
-- param: n integer 20 rows to return
select corpus, example_id, messages, source, n_copies
from examples
where starts_with(example_id, $prefix) and ($corpus is null or corpus = $corpus)
order by corpus, example_id
limit $n
