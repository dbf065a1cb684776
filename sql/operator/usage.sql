-- One row is one thing that a tenant's key did: a request that was answered, the end of a job, a key made or revoked.
-- Units: ended_at is UTC, n_rows_in are rows of the data set sent, n_rows_out rows of an SQL answer, n_bytes_* bytes of
-- bodies, duration_ms milliseconds; null where there is none. Key: event_id, which sorts by time.
create or replace view usage as
select
    ended_at, event_id, tenant, key_id, action, status, mix_id, job_id,
    n_rows_in, n_rows_out, n_bytes_in, n_bytes_out, duration_ms, request_id
from usage_parts
where event_id is not null -- a line that a killed process left half-written
