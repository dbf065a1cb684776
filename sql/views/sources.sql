-- One row is one kept record of an ingested file; folded copies share an example_id.
-- Units: record is a 1-based position in its file. Key: corpus, source, record.
create or replace view sources as
select corpus, example_id, source, source_id, record
from source_parts
