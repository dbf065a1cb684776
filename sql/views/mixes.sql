-- One row is one mix of the store, of any tenant; for the local command alone, the HTTP service has no view of mixes.
-- Units: created is when the manifest was written (UTC), n_task_rows and n_rejected count rows of the user's set, n_rows and n_safe
-- rows of all epochs; interleave_ratio_asked and interleave_ratio are safe rows per task row, token_ratio safe per task response
-- tokens (null where tokens are not counted), mix_share a fraction (0 to 1). corpora, strategies and scores have an entry for
-- each pool. recipe and manifest are JSON. Key: tenant, mix_id.
create or replace view mixes as
select
    tenant, mix_id, created, manifest ->> '$.product_version' as product_version,
    json_extract_string(manifest, '$.pools[*].corpus') as corpora,
    json_extract_string(manifest, '$.recipe.pools[*].strategy.name') as strategies,
    json_extract_string(manifest, '$.pools[*].score') as scores,
    manifest ->> '$.order.name' as order_name, (manifest ->> '$.order.seed')::bigint as seed,
    (manifest ->> '$.order.epochs')::integer as epochs, manifest ->> '$.inoculation.kind' as inoculation,
    manifest ->> '$.policy.name' as policy, (manifest ->> '$.task.n_rows')::bigint as n_task_rows,
    (manifest ->> '$.task.n_rejected')::bigint as n_rejected, (manifest ->> '$.n_rows')::bigint as n_rows,
    (manifest ->> '$.n_safe')::bigint as n_safe,
    (manifest ->> '$.ratio.asked')::double as interleave_ratio_asked,
    (manifest ->> '$.ratio.reached_rows')::double as interleave_ratio,
    (manifest ->> '$.ratio.reached_response_tokens')::double as token_ratio,
    (manifest ->> '$.ratio.mix_share')::double as mix_share,
    json_extract_string(manifest, '$.warnings[*].code') as warnings,
    manifest ->> '$.task.sha256' as task_sha256, manifest ->> '$.rows_sha256' as rows_sha256,
    manifest -> '$.recipe' as recipe, manifest::json as manifest
from mix_manifests
