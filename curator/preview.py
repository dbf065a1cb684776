"""What a mix would be, told without keeping it."""

from curator.build import _new_folder, _write, plan_mix
from curator.config import Recipe
from curator.mixrows import DEFAULT_TENANT, tenant_path
from curator.policy import Policy
from curator.receipt import Manifest
from curator.store import Store
from curator.tasks import TaskSet


def preview_mix(
    store: Store, task_set: TaskSet, recipe: Recipe, tenant: str = DEFAULT_TENANT, policy: Policy | None = None
) -> Manifest:
    """The manifest that `build_mix` would give.

    The rows are written to a temporary folder, which counts and hashes them exactly, and removed again. Raises what
    `build_mix` raises.
    """
    tenant_path(tenant)
    plan = plan_mix(store, task_set, recipe, policy)
    temporary = _new_folder(tenant)
    try:
        return _write(store, temporary, plan, task_set)
    finally:
        store.delete(temporary)
