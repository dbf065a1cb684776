"""The id of a mix, its stored manifest, and the figures of a manifest that follow from its counts."""

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import orjson
from pydantic import ValidationError

from curator.errors import IntegrityError, MissingError
from curator.mix.files import MANIFEST_FILE, mix_path
from curator.mix.manifest import (
    Manifest,
    Prefix,
    Ratio,
    TokenCount,
)
from curator.mix.order import (
    Allocation,
    Schedule,
    prefix_deviation,
    worst_prefix,
)
from curator.recipe import Recipe
from curator.recipe.problems import problem_line, problems_of
from curator.store.schema import MIX_FORMAT_VERSION
from curator.store.store import Store

__all__ = [
    "Manifest",
    "id_of_manifest",
    "mix_id",
    "pool_names",
    "ratio_of",
    "read_manifest",
]


def mix_id(
    recipe: Recipe,
    task_sha256: str,
    candidates_sha256: Sequence[str] = (),
    format_version: int = MIX_FORMAT_VERSION,
    *,
    sources_sha256: str | None = None,
    policy_sha256: str | None = None,
) -> str:
    """The id of a mix: 128 bits in hex over the resolved recipe, each pool's candidates and the task set.

    `recipe` is resolved: concrete revisions and full scorer ids. `candidates_sha256` stands for the losses that
    the store held: scoring more rows of a sample changes what can be chosen, and so the id. Labels of task rows and
    a provider's policy, which rows and manifest show, count where there are any.
    """
    document: dict[str, object] = {
        "format_version": format_version,
        "recipe": recipe.model_dump(mode="json"),
        "candidates_sha256": list(candidates_sha256),
        "task_sha256": task_sha256,
    }
    optional = {"sources_sha256": sources_sha256, "policy_sha256": policy_sha256}
    document |= {name: value for name, value in optional.items() if value is not None}
    text = orjson.dumps(document, option=orjson.OPT_SORT_KEYS)
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def id_of_manifest(manifest: Manifest) -> str:
    """The mix id that follows from what a manifest says of recipe, candidates, policy and task set."""
    return mix_id(
        manifest.recipe,
        manifest.task.sha256,
        [pool.candidates_sha256 for pool in manifest.pools],
        manifest.format_version,
        sources_sha256=manifest.task.sources_sha256,
        policy_sha256=None if manifest.policy is None else manifest.policy.sha256,
    )


def read_manifest(store: Store, tenant: str, mix: str) -> Manifest:
    """A mix's manifest; raises MissingError without one, IntegrityError when it is not of this version."""
    path = f"{mix_path(tenant, mix)}/{MANIFEST_FILE}"
    try:
        return _manifest(store.read_bytes(path))
    except orjson.JSONDecodeError as error:
        raise IntegrityError(f"{path} in store {store.base} is not JSON: {error}") from error
    except MissingError as error:
        raise MissingError(f"there is no mix {mix} of tenant {tenant}") from error
    except ValidationError as error:
        problems = problems_of(error)
        text = f"{path} is not a manifest of this version: {problem_line(problems, most=3)}"
        raise IntegrityError(text, details=problems) from error


@lru_cache(maxsize=128)
def _manifest(text: bytes) -> Manifest:
    """A manifest out of its file's bytes; each request for a mix reads it, and a list of mixes all of them."""
    return Manifest.model_validate(orjson.loads(text))


def pool_names(recipe: Recipe) -> list[str]:
    """How rows name their pool: by its corpus, numbered from the second pool of the same corpus on."""
    names: list[str] = []
    for pool in recipe.pools:
        n_before = sum(earlier.corpus == pool.corpus for earlier in recipe.pools[: len(names)])
        names.append(f"{pool.corpus}#{n_before + 1}" if n_before else pool.corpus)
    return names


def _prefix(order: Schedule, allocation: Allocation) -> Prefix:
    found = worst_prefix(order, allocation.ratio, allocation.epochs)
    ratio = found.n_safe / found.n_task if found.n_task else 0.0
    return Prefix(epoch=found.epoch, n_task=found.n_task, n_safe=found.n_safe, ratio=ratio)


def ratio_of(allocation: Allocation, order: Schedule, task: TokenCount | None, safe: TokenCount | None) -> Ratio:
    """Ratios asked and reached (method.md, "Amount and order"); the token ratio is null where tokens are not known."""
    n_safe = allocation.n_safe_total
    known = task is not None and safe is not None and task.response > 0
    return Ratio(
        asked=float(allocation.ratio),
        reached_rows=n_safe / allocation.n_task,
        reached_response_tokens=safe.response / task.response if known and task and safe else None,
        mix_share=n_safe / (allocation.n_task + n_safe),
        largest_prefix_deviation=prefix_deviation(order, allocation.ratio, allocation.epochs),
        worst_prefix=_prefix(order, allocation),
    )
