"""Jobs of kind `mix`: the same build that the service does while a caller waits."""

from pathlib import Path
from typing import Any

from curator.build import MixResult, build_lasting
from curator.config import parse_recipe
from curator.config.policy import Policy
from curator.jobs.control import Control, watched
from curator.store import Store


def run_mix(store: Store, rows: Path, control: Control) -> dict[str, Any]:
    """Build the mix that a job's request asks for; returns its id and whether it is new.

    A mix that is over the service's `mix_ttl_s` and not yet swept is built again. Raises what `build_mix`
    raises, CancelledError and StoppedError: then no mix was made.
    """
    job, request = control.job, control.job.request
    task_set = watched(request["task"], rows, control)
    control.stage("building", task_set.n_rows, "rows")
    policy = Policy.model_validate(request["policy"]) if request["policy"] else None
    ttl_s = request.get("mix_ttl_s")  # absent from jobs of before it was there
    recipe = parse_recipe(request["recipe"])
    result: MixResult = build_lasting(store, task_set, recipe, job.tenant, policy, ttl_s)
    return {"mix_id": result.mix_id, "created": result.created}
