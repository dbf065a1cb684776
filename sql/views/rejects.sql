-- One row is one record that ingesting kept out, and why.
-- Units: ingest is the 0-based order of ingesting, record and line are 1-based positions, byte_offset is in bytes.
-- Key: corpus, ingest, record, pointer, code.
create or replace view rejects as
select corpus, ingest, source, record, line, byte_offset, pointer, code, message
from reject_parts
