"""Stores of an older format version: brought up to date step by step, or refused; never misread.

A step takes a store from its version to the next one. It must be able to run again over its own half-done work:
the version in store.json is raised only after a step has ended, so a killed migration starts that step again.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from curator.errors import StoreError
from curator.schema import STORE_FORMAT_VERSION

if TYPE_CHECKING:
    from curator.store import Store

STORE_FILE = "store.json"
Step = Callable[["Store"], None]

# From version -> the step that leads to the next one. Version 1 is the first there ever was.
STEPS: Mapping[int, Step] = {}


def bring_up_to_date(
    store: "Store", found: object, steps: Mapping[int, Step] = STEPS, current: int = STORE_FORMAT_VERSION
) -> None:
    """Take a store from version `found` to `current`; nothing when it is there already.

    Raises StoreError, with the store untouched, for a newer version, or an older one that no step leads on from.
    """
    if found == current and not isinstance(found, bool):
        return
    if not isinstance(found, int) or isinstance(found, bool) or found > current or not _path(found, current, steps):
        raise StoreError(
            f"store {store.base} has format version {found!r}; this version of the product reads {current}: use the "
            "version that wrote it, or ingest and score again"
        )
    with store.lock("."):
        version = int(store.read_json(STORE_FILE)["format_version"])  # another process may have done it meanwhile
        for step in range(version, current):
            steps[step](store)
            store.write_json(STORE_FILE, {**store.read_json(STORE_FILE), "format_version": step + 1})


def _path(found: int, current: int, steps: Mapping[int, Step]) -> bool:
    return all(version in steps for version in range(found, current))
