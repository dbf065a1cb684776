"""What a pool's manifests mean beside the store's own: the same, more, less, or something else of that name."""

from collections.abc import Mapping
from typing import Any

from curator.errors import BadInputError

Manifest = Mapping[str, Any]

_LATER = ("labels_ignored", "revision")  # of an ingest's entry; older versions did not write them


def changed(current: Mapping[str, Manifest], brought: Mapping[str, Manifest]) -> list[str]:
    """Paths of the manifests to write, in the order of `brought`: new ones, and those that go on from the store's.

    A corpus goes on from another when it has that one's ingests and revisions, and more; a scorer when it has that
    one's parts, and more. Raises BadInputError listing every name that stands for two different things.
    """
    clashes: list[str] = []
    new: list[str] = []
    for path, theirs in brought.items():
        ours = current.get(path)
        if ours is None:
            new.append(path)
            continue
        differs = _corpus_clash(ours, theirs) if path.endswith("/corpus.json") else _scorer_clash(ours, theirs)
        if differs:
            clashes.append(differs)
        elif _size(theirs) > _size(ours):
            new.append(path)
    if clashes:
        raise BadInputError(f"nothing was imported: {'; '.join(clashes[:3])}", details=clashes)
    return new


def _size(document: Manifest) -> int:
    return len(document["ingests"] if "ingests" in document else document["parts"])


def _corpus_clash(ours: Manifest, theirs: Manifest) -> str | None:
    short, long = sorted((ours, theirs), key=_size)
    n_ingests, n_revisions = len(short["ingests"]), len(short["revisions"])
    same = long["revisions"][:n_revisions] == short["revisions"]
    if same and all(map(_same_ingest, long["ingests"][:n_ingests], short["ingests"])):
        return None
    return (
        f"the store's corpus {ours['name']} (revision {ours['revision'][:12]}, {ours['n_examples']:,} examples) is not "
        f"the pool's (revision {theirs['revision'][:12]}, {theirs['n_examples']:,} examples): import into another store"
    )


def _same_ingest(one: Manifest, other: Manifest) -> bool:
    unknown = [name for name in _LATER if name not in one or name not in other]
    return {**one, **dict.fromkeys(unknown)} == {**other, **dict.fromkeys(unknown)}


def _scorer_clash(ours: Manifest, theirs: Manifest) -> str | None:
    name = f"scorer {ours['label']} ({ours['scorer_id'][:12]}) of corpus {ours['corpus']}"
    for field in ("scorer_id", "role", "domain", "identity", "renderer_id"):
        if ours[field] != theirs[field]:
            return f"{name} has {field} {ours[field]!r} in the store and {theirs[field]!r} in the pool"
    mine, its = ({(part["name"], part["sha256"]) for part in document["parts"]} for document in (ours, theirs))
    if mine <= its or its <= mine:
        return None
    folder = f"scores/{ours['corpus']}/{ours['scorer_id']}"
    return f"{name} was scored apart in the store and in the pool: delete {folder} to take the pool's losses"
