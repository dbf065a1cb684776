-- One row is one kept record of an ingested file; folded copies share an example_id.
-- Units: ingest is the 0-based order of ingesting, record a 1-based position in its file; file is the ingested file's
-- name, source the record's own source, else the file's name. Key: corpus, ingest, record.
create or replace view sources as
select corpus, ingest, example_id, source, source_id, record, coalesce(file, source) as file
from source_parts
