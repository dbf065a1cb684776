-- One row is one record that ingesting kept out, and why.
-- Units: record and line are 1-based positions, byte_offset is in bytes. Key: corpus, source, record, pointer, code.
create or replace view rejects as
select corpus, source, record, line, byte_offset, pointer, code, message
from reject_parts
