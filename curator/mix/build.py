"""Building a mix: plan, write, publish. Decisions are pure functions elsewhere; this module reads and writes files.

A mix is written into a hidden folder of `mixes/<tenant>/`, its manifest last, and the whole folder is renamed into
place: whoever sees the folder sees a complete mix. `preview_mix` writes the same rows and removes them again. Its
process holds a lock of the hidden folder, so that what a killed one leaves is known at once; in a bucket its age tells.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from curator.corpus.task_set import TaskSet
from curator.errors import BadInputError, IntegrityError, MissingError, StoreError, is_full
from curator.mix.count_beside import Add, counting_beside
from curator.mix.describe import describe
from curator.mix.files import (
    DEFAULT_TENANT,
    LINES_FILE,
    MANIFEST_FILE,
    MIX_FILE,
    json_lines,
    mix_batches,
    mix_path,
    tenant_path,
)
from curator.mix.identity import read_manifest
from curator.mix.manifest import Manifest, Tokens
from curator.mix.order import keeps_task_order, schedule
from curator.mix.plan import MixPlan, plan_mix, safe_rows
from curator.mix.row_prompts import count_prompts, row_prompts
from curator.mix.token_counter import TokenCounter
from curator.mix.writer import MixRows, write_rows
from curator.recipe import Recipe
from curator.recipe.policy import Policy
from curator.render import RENDERERS
from curator.store.filesystem import atomic_write, in_our_words
from curator.store.scratch import HIDDEN, Scratch, sweep_folder
from curator.store.store import Store

STALE_S = 3600.0  # a temporary folder untouched for so long has no writer any more
LARGE_BYTES = 2 << 20  # of a task set's file: a mix of fewer is made into lines as fast as they are read


@dataclass(frozen=True)
class MixResult:
    """A mix in the store; `created` is false when the same request had made it before."""

    mix_id: str
    manifest: Manifest
    created: bool


def build_mix(
    store: Store,
    task_set: TaskSet,
    recipe: Recipe,
    tenant: str = DEFAULT_TENANT,
    policy: Policy | None = None,
    jsonl: Path | None = None,
) -> MixResult:
    """Make the mix that a recipe gives for a task set under a provider's policy, or find it made already.

    The same request against the same store gives the same id, rows and manifest, at any thread count. `jsonl` is a
    file to write the rows to as well, as the JSON Lines that `rows_sha256` is over. Raises what `plan_mix` raises; a
    failure or kill at any moment leaves no mix behind.
    """
    tenant_path(tenant)  # a bad name is refused before the work
    if jsonl is not None and not jsonl.parent.is_dir():
        raise BadInputError(f"cannot write {jsonl}: there is no folder {jsonl.parent}")
    plan = plan_mix(store, task_set, recipe, policy)
    if jsonl is None:
        return publish(store, tenant, plan.mix_id, lambda folder: _write(store, folder, plan, task_set))
    with atomic_write(jsonl, durable=True) as temporary, temporary.open("wb") as file:
        result = publish(store, tenant, plan.mix_id, lambda folder: _write(store, folder, plan, task_set, file))
        if not result.created:  # or another process made it first: its rows are the same
            file.seek(0)
            file.writelines(map(json_lines, mix_batches(store, tenant, plan.mix_id)))
            file.truncate()
    return result


def publish(store: Store, tenant: str, mix_id: str, write: Callable[[str], Manifest]) -> MixResult:
    """The mix of this id, made by `write` into a hidden folder of the store unless it is there already and whole.

    A mix whose file or manifest is damaged is removed and made again.
    """
    final = mix_path(tenant, mix_id)
    try:
        manifest = read_manifest(store, tenant, mix_id)
        if is_whole(store, tenant, manifest):
            return MixResult(mix_id, manifest, created=False)
        remove_mix(store, tenant, mix_id)
    except IntegrityError:
        remove_mix(store, tenant, mix_id)
    except MissingError:
        _clear_remains(store, tenant, final)
    with hidden_folder(store, tenant) as temporary:
        manifest = write(temporary)
        created = store.rename_dir(temporary, final)
    return MixResult(mix_id, manifest if created else read_manifest(store, tenant, mix_id), created)


def is_whole(store: Store, tenant: str, manifest: Manifest) -> bool:
    """Whether a mix's files have the hashes that its manifest says."""
    folder = mix_path(tenant, manifest.mix_id)
    try:
        return all(store.sha256(f"{folder}/{receipt.name}") == receipt.sha256 for receipt in manifest.files)
    except MissingError:
        return False


@contextmanager
def hidden_folder(store: Store, tenant: str) -> Iterator[str]:
    """The path of a new hidden folder of a tenant, removed at the end of the block unless it was moved away."""
    parent = store.local_path(tenant_path(tenant))
    if parent is None:
        temporary = _new_folder(tenant)
        try:
            yield temporary
        except BaseException:
            store.delete(temporary)
            raise
        return
    with in_our_words("write", tenant_path(tenant), store.base):
        parent.mkdir(parents=True, exist_ok=True)
        scratch = Scratch(HIDDEN, parent)
    with scratch as folder:
        yield f"{tenant_path(tenant)}/{folder.name}"


def _new_folder(tenant: str) -> str:
    return f"{tenant_path(tenant)}/.tmp-{secrets.token_hex(8)}"


def _clear_remains(store: Store, tenant: str, final: str) -> None:
    """Remove a mix's folder that has no manifest: a deletion that was cut off.

    In a bucket it may be another process's copy under way, and `rename_dir` copies over it.
    """
    if store.local_path(final) is None or not store.exists(final):
        return
    aside = _new_folder(tenant)
    store.rename_dir(final, aside)
    if store.exists(f"{aside}/{MANIFEST_FILE}"):  # another process published it in this very moment
        store.rename_dir(aside, final)
    else:
        store.delete(aside)


def remove_left(store: Store, tenant: str) -> int:
    """Remove what killed builds of a tenant left; returns how many folders went.

    Those are hidden folders whose process has ended, and `remove_stale`'s. It reads the whole list of the tenant's
    mixes, so it is for a command's start and a service's sweep, not for each build.
    """
    parent = store.local_path(tenant_path(tenant))
    n_stale = len(remove_stale(store, tenant))
    return n_stale if parent is None else n_stale + sweep_folder(parent)


def remove_stale(store: Store, tenant: str, older_than_s: float = STALE_S) -> list[str]:
    """Remove temporary folders without a lock that were not touched for so long; returns their names."""
    stale = list(store.stale(tenant_path(tenant), ".tmp-*", older_than_s))
    for name in stale:
        store.delete(f"{tenant_path(tenant)}/{name}")
    return stale


def build_lasting(
    store: Store, task_set: TaskSet, recipe: Recipe, tenant: str, policy: Policy | None, ttl_s: float | None
) -> MixResult:
    """As `build_mix` for a store that is served: a mix that has expired (`is_expired`) is removed and built again.

    A large mix of a local store has its rows as JSON Lines (LINES_FILE) beside it from the start, if there is room for
    them: the build makes the lines anyway, to hash them, and the first download need not wait for them.
    """
    tenant_path(tenant)
    plan = plan_mix(store, task_set, recipe, policy)
    is_large = task_set.path.stat().st_size >= LARGE_BYTES and store.local_path("") is not None

    def write(folder: str) -> Manifest:
        return (_write_with_lines if is_large else _write)(store, folder, plan, task_set)

    result = publish(store, tenant, plan.mix_id, write)
    if not result.created and remove_expired(store, tenant, result.mix_id, ttl_s):
        result = publish(store, tenant, plan.mix_id, write)
    return result


def is_expired(store: Store, tenant: str, mix_id: str, ttl_s: float | None) -> bool:
    """Whether a mix was built (its manifest written) more than `ttl_s` seconds ago; None: never. False for no mix."""
    if ttl_s is None:
        return False
    try:
        return store.age_s(f"{mix_path(tenant, mix_id)}/{MANIFEST_FILE}") > ttl_s
    except MissingError:
        return False


def remove_expired(store: Store, tenant: str, mix_id: str, ttl_s: float | None) -> bool:
    """Remove a mix if it has expired; returns whether it had."""
    if not is_expired(store, tenant, mix_id, ttl_s):
        return False
    remove_mix(store, tenant, mix_id)
    return True


def remove_mix(store: Store, tenant: str, mix_id: str) -> None:
    """Remove a mix; its manifest goes first: what is left after a crash is not a mix any more."""
    folder = mix_path(tenant, mix_id)
    store.delete(f"{folder}/{MANIFEST_FILE}")
    store.delete(folder)


def _write(store: Store, temporary: str, plan: MixPlan, task_set: TaskSet, jsonl: BinaryIO | None = None) -> Manifest:
    """Write data file and manifest into a temporary folder, which `publish` makes durable."""
    order = schedule(plan.allocation, plan.recipe.order, plan.recipe.seed)
    safe = safe_rows(plan.drawn, plan.recipe.seed)
    prompts = row_prompts(plan.recipe, plan.allocation)
    shuffled = not keeps_task_order(plan.allocation, plan.recipe.order)
    rows = MixRows(order, task_set, safe, shuffled, plan.recipe.epochs, prompts)
    counter, why_not = _token_counter(store, plan)
    with (
        store.fill(f"{temporary}/{MIX_FILE}", durable=False) as path,
        _counting(store, plan, counter, task_set) as count,
    ):
        written = write_rows(path, rows, count, jsonl)
    tokens = _tokens(plan, counter, why_not)
    manifest = describe(plan, task_set, order, written, tokens, count_prompts(prompts, task_set, safe))
    store.fill_json(f"{temporary}/{MANIFEST_FILE}", manifest.model_dump(mode="json"), durable=False)
    return manifest


def _write_with_lines(store: Store, temporary: str, plan: MixPlan, task_set: TaskSet) -> Manifest:
    """As `_write`, with the lines as a file of the folder; without it where the disk has no room for both."""
    lines = f"{temporary}/{LINES_FILE}"
    try:
        with store.fill(lines) as path, path.open("wb") as file:
            return _write(store, temporary, plan, task_set, file)
    except StoreError as error:
        if not is_full(error):
            raise
        store.delete(lines)
    return _write(store, temporary, plan, task_set)


def _token_counter(store: Store, plan: MixPlan) -> tuple[TokenCounter | None, str | None]:
    """A counter under the aligned scorer's renderer, or the reason why there is none."""
    if plan.aligned is None:
        return None, "no pool has an aligned scorer, whose chat template and tokenizer would count tokens"
    renderer_id = plan.aligned.renderer_id
    try:
        renderer = RENDERERS.get(store, renderer_id)
    except MissingError:
        return None, f"renderer {renderer_id} of the aligned scorer is not in the store"
    return TokenCounter(renderer, plan.aligned.identity["mask_rule"]), None


@contextmanager
def _counting(store: Store, plan: MixPlan, counter: TokenCounter | None, task_set: TaskSet) -> Iterator[Add | None]:
    """What counts rows for the length of the block; None without a counter."""
    if counter is None or plan.aligned is None:
        yield None
        return
    with counting_beside(counter, store, plan.aligned.renderer_id, task_set.path.stat().st_size) as add:
        yield add


def _tokens(plan: MixPlan, counter: TokenCounter | None, why_not: str | None) -> Tokens:
    aligned = plan.aligned
    if counter is None or aligned is None:
        return Tokens(renderer_id=None, mask_rule=None, reason=why_not, task=None, safe=None)
    return Tokens(
        renderer_id=aligned.renderer_id,
        render_settings=counter.render_settings,
        mask_rule=aligned.identity["mask_rule"],
        reason=None,
        task=counter.count("task"),
        safe=counter.count("safe"),
    )


def preview_mix(
    store: Store, task_set: TaskSet, recipe: Recipe, tenant: str = DEFAULT_TENANT, policy: Policy | None = None
) -> Manifest:
    """The manifest that `build_mix` would give.

    The rows are written to a temporary folder, which counts and hashes them exactly, and removed again. Raises what
    `build_mix` raises.
    """
    tenant_path(tenant)
    plan = plan_mix(store, task_set, recipe, policy)
    with hidden_folder(store, tenant) as temporary:
        try:
            return _write(store, temporary, plan, task_set)
        finally:
            store.delete(temporary)


__all__ = [
    "MixPlan",
    "MixResult",
    "build_lasting",
    "build_mix",
    "hidden_folder",
    "is_expired",
    "is_whole",
    "plan_mix",
    "publish",
    "remove_expired",
    "remove_left",
    "remove_mix",
    "remove_stale",
]
