-- One row is one row of a mix in training order, the user's (origin task) or a pool's (origin safe); for the local command alone.
-- Units: position and ordinal are 0-based, epoch (null in a mix of one epoch) and rank 1-based; gap_abs in nats per token, gap_rel a
-- ratio, score what the recipe ranks by; pool, corpus, rank, score, gaps, losses and filters_passed are null for the user's rows.
-- original_id is the id before an inoculation prompt was put in, null without one. Key: tenant, mix_id, position.
create or replace view mix_rows as
select
    tenant, mix_id, position, epoch, origin, example_id, original_id, ordinal, messages, pool, corpus, revision, source,
    rank, score, gap_abs, gap_rel, losses, filters_passed, inoculation, replaced_system
from mix_parts
