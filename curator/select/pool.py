"""Making, keeping and finding wide tables: from the parts that manifests name, by a key that names all of them.

A table is rebuilt when any part or manifest changed, and written only for corpora large enough to be worth it, in a
local store. Where it cannot be written it is made in memory; the result is the same.
"""

import hashlib
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from curator.console import Progress
from curator.corpus.manifest import (
    Corpus,
    Scorer,
    read_corpus,
    read_scorers,
)
from curator.errors import StoreError
from curator.query.database import connect
from curator.query.gaps import bounds, definitions
from curator.query.queries import run_named
from curator.query.scorers import ResolvedScorers
from curator.recipe import RefusalRule
from curator.recipe.filters import TextPart
from curator.select.columns import Coded, Floats, halves_of
from curator.select.dedup import signed
from curator.select.filters import is_refusal, texts_of
from curator.select.minhash import N_PERMUTATIONS, Signatures, algorithm
from curator.select.pooltexts import PoolTexts
from curator.select.wide import (
    BLOCK_ROWS,
    LABELS,
    REFUSAL_BITS,
    Member,
    Wide,
)
from curator.select.widefile import (
    COLUMNS_FILE,
    TEXTS_FILE,
    WIDE_FORMAT_VERSION,
    Texts,
    read_wide,
    write_texts,
    write_wide,
)
from curator.store.filesystem import atomic_write
from curator.store.store import Store

KEEP_FROM_ROWS = 20_000  # smaller corpora are read faster than a table is found
KEPT = 4  # tables of one corpus that stay on disk, and in the memory of a process
_TEXT_WINDOW_CHARS = 1 << 29  # texts held at once while they are put into the table's order

_SIGN_ROWS = 8_192
_BOUND_ROWS = 1 << 20
_lock = threading.Lock()
_open: dict[str, "Kept"] = {}
_building: dict[str, threading.Lock] = {}


@dataclass(frozen=True)
class Kept:
    """A wide table, its texts, and the folder that it lies in (None for one in memory alone)."""

    wide: Wide
    texts: PoolTexts | Texts
    folder: Path | None

    def signatures(self, part: TextPart) -> Signatures:
        """MinHash signatures of one side of every row's text, kept beside the table once they are made (where it is).

        Raises what reading the texts raises.
        """
        if self.folder is None:
            return self._sign(part)
        path = self.folder / f"signatures-{part}-{algorithm().replace('/', '-')}.npy"
        with suppress(OSError, ValueError):
            held = np.load(path, mmap_mode="r")
            if held.shape == (N_PERMUTATIONS, len(self.wide)) and held.dtype == np.uint32:
                kept: Signatures = held
                return kept
        made = self._sign(part)
        # A store that cannot be written makes them each time.
        with suppress(StoreError), atomic_write(path, durable=True) as temporary, temporary.open("wb") as file:
            np.save(file, made)
        return made

    def _sign(self, part: TextPart) -> Signatures:
        made = np.zeros((N_PERMUTATIONS, len(self.wide)), dtype=np.uint32)
        with Progress(len(self.wide), "rows", "signing texts") as bar:
            for start in range(0, len(self.wide), _SIGN_ROWS):
                rows = np.arange(start, min(start + _SIGN_ROWS, len(self.wide)))
                made[:, rows] = signed([texts_of(self.texts(rows), part)])
                bar.advance(len(rows))
        return made


def wide_of(store: Store, scorers: ResolvedScorers) -> Kept:
    """The wide table of the score group that a pool's scorers belong to, from disk where it is kept."""
    corpus = read_corpus(store, scorers.corpus, scorers.revision)
    members = _members(store, corpus, scorers.aligned)
    key = _key(store, corpus, members)
    with _lock:
        turn = _building.setdefault(key, threading.Lock())
    with turn:  # others wait for this table alone
        found = _open.get(key) or _found(store, corpus, members, key)
    with _lock:
        _open.pop(key, None)
        _open[key] = found
        while len(_open) > KEPT:
            gone = next(iter(_open))
            _open.pop(gone)
            _building.pop(gone, None)
    if found.folder is not None:
        return found
    # Texts that are read whole are not held longer than one mix needs them.
    return replace(found, texts=PoolTexts(store, corpus.name, corpus.revision, found.wide.ids))


def _members(store: Store, corpus: Corpus, aligned: Scorer | None) -> list[Scorer]:
    """The aligned scorer and every complete one that may share a gap with it."""
    if aligned is None:
        return []
    known = [item for item in read_scorers(store, corpus) if item.complete and item.measure_id == aligned.measure_id]
    others = [
        item for role in ("misaligned", "benign") for item in sorted(known, key=lambda one: one.scorer_id)
        if item.role == role
    ]  # fmt: skip
    return [aligned, *others]


def _key(store: Store, corpus: Corpus, members: Sequence[Scorer]) -> str:
    """A hash of the manifests that the table follows from, and of size and time of every part they name."""
    paths = [f"corpora/{corpus.name}/corpus.json"]
    paths += [f"scores/{corpus.name}/{item.scorer_id}/scorer.json" for item in members]
    digest = hashlib.blake2b(f"{WIDE_FORMAT_VERSION} {store.base} {corpus.revision}".encode(), digest_size=16)
    digest.update(definitions().encode())
    for path in paths:
        digest.update(store.read_bytes(path))
    parts = [*corpus.parts, *(path for paths in corpus.sources for path in paths)]
    for path in (*parts, *(path for item in members for path in item.parts)):
        local = store.local_path(path)
        with suppress(OSError):  # what is missing is told by whoever reads it
            state = None if local is None else local.stat()
            digest.update(f"{path} {state and (state.st_size, state.st_mtime_ns, state.st_ino)}".encode())
    return digest.hexdigest()


def _found(store: Store, corpus: Corpus, members: Sequence[Scorer], key: str) -> Kept:
    folder = store.local_path(f"wide/{corpus.name}/{key}")
    if folder is None or corpus.n_examples < KEEP_FROM_ROWS:
        return _in_memory(store, corpus, members)
    kept = _read(folder)
    if kept is not None:
        return kept
    made = _in_memory(store, corpus, members)
    try:
        _keep(store, f"wide/{corpus.name}", key, made)
    except (StoreError, OSError):  # a store that cannot be written is mixed from all the same
        return made
    return _read(folder) or made  # another process may sweep tables in this moment


def _read(folder: Path) -> Kept | None:
    """The table that lies in a folder; None where there is none that can be read."""
    with suppress(OSError, pa.ArrowException, KeyError, orjson.JSONDecodeError):
        return Kept(read_wide(folder / COLUMNS_FILE), Texts(folder / TEXTS_FILE), folder)
    return None


def _keep(store: Store, parent: str, key: str, made: Kept) -> None:
    temporary = f"{parent}/.tmp-{secrets.token_hex(8)}"
    try:
        with store.fill(f"{temporary}/{COLUMNS_FILE}") as path:
            write_wide(path, made.wide)
        with store.fill(f"{temporary}/{TEXTS_FILE}") as path:
            write_texts(path, _text_windows(made))
        folder = store.local_path(f"{parent}/{key}")
        if folder is not None and _read(folder) is None:  # else another process has kept the same meanwhile
            store.delete(f"{parent}/{key}")
        store.rename_dir(temporary, f"{parent}/{key}")
    except BaseException:
        store.delete(temporary)
        raise
    _sweep(store, parent, key)


def _sweep(store: Store, parent: str, key: str) -> None:
    """Remove what killed writers left, and all but the newest tables."""
    for name in store.stale(parent, ".tmp-*", 3600.0):
        store.delete(f"{parent}/{name}")
    paths = [store.local_path(f"{parent}/{name}") for name in store.list(parent) if name != key]
    there = sorted((path for path in paths if path is not None), key=lambda path: path.stat().st_mtime)
    for path in there[: max(0, len(there) - KEPT + 1)]:
        store.delete(f"{parent}/{path.name}")


def _text_windows(made: Kept) -> Iterator[list[str]]:
    assert isinstance(made.texts, PoolTexts)
    window = np.cumsum(made.wide.numbers["n_chars"].astype(np.int64)) // _TEXT_WINDOW_CHARS
    starts = np.flatnonzero(np.diff(window, prepend=-1)).tolist()
    for start, end in pairwise([*starts, len(window)]):
        yield from made.texts.read_once(start, end)


def _in_memory(store: Store, corpus: Corpus, members: Sequence[Scorer]) -> Kept:
    """Read examples and losses by id, then put all of it into the table's order."""
    with connect(store, {corpus.name: corpus.revision}) as connection:
        examples = run_named(connection, "gap_candidates", {"corpus": corpus.name}).table.combine_chunks()
        losses = [
            run_named(connection, "losses", {"corpus": corpus.name, "scorer": item.scorer_id}).table for item in members
        ]
    ids = examples["example_id"]
    n_rows = len(ids)
    nll_sum, mean_nll = np.full((n_rows, len(members)), np.nan), np.full((n_rows, len(members)), np.nan)
    n_tokens = np.zeros((n_rows, len(members)), dtype=np.int32)
    for place, table in enumerate(losses):
        rows = pc.index_in(table["example_id"], value_set=ids.combine_chunks())
        inside = rows.is_valid().to_numpy(zero_copy_only=False)
        at = rows.drop_null().to_numpy()
        for target, name in ((nll_sum, "nll_sum"), (mean_nll, "mean_nll"), (n_tokens, "n_response_tokens")):
            target[at, place] = table[name].to_numpy()[inside]
    wide = arranged(
        tuple(Member(item.scorer_id, item.role) for item in members),
        halves_of(ids.to_pylist()),
        refusals_of(examples["response_head"].to_pylist()),
        {name: Coded.of(examples[name].to_pylist()) for name in LABELS},
        {name: examples[name].to_numpy().astype(np.int32) for name in ("n_chars", "n_turns")},
        nll_sum, n_tokens, mean_nll,
    )  # fmt: skip
    return Kept(wide, PoolTexts(store, corpus.name, corpus.revision, wide.ids), None)


def refusals_of(heads: Sequence[str]) -> npt.NDArray[np.uint8]:
    """A bit for each rule under which an answer opens like a refusal, shape (len(heads),)."""
    rules: list[tuple[RefusalRule, int]] = list(REFUSAL_BITS.items())
    found = (sum(bit for rule, bit in rules if is_refusal(head, rule)) for head in heads)
    return np.fromiter(found, dtype=np.uint8, count=len(heads))


def arranged(
    members: tuple[Member, ...], halves: npt.NDArray[np.uint64], refusals: npt.NDArray[np.uint8],
    labels: dict[str, Coded], numbers: dict[str, npt.NDArray[np.int32]],
    nll_sum: Floats, n_tokens: npt.NDArray[np.int32], mean_nll: Floats,
) -> Wide:  # fmt: skip
    """The table of columns that are given in the order of the ids."""
    n_rows = len(halves)
    digests = {"example_id": _sha256(halves.astype(">u8"))}
    digests |= {name: _label_sha256(label) for name, label in labels.items() if not label.missing.all()}
    for place, member in enumerate(members):
        digests[member.scorer_id] = _sha256(nll_sum[:, place].astype("<f8"), n_tokens[:, place].astype("<i4"))
    misaligned = mean_nll[:, [i for i, member in enumerate(members) if member.role == "misaligned"]]
    aligned = mean_nll[:, 0] if members else np.full(n_rows, np.nan)
    sizes = range(1, misaligned.shape[1] + 1)
    limits = [_limits(aligned, misaligned, size) for size in sizes]
    order = np.lexsort((np.arange(n_rows), -limits[-1])) if limits else np.arange(n_rows)
    tokens = np.where(np.isnan(aligned), np.nan, n_tokens[:, 0]) if members else np.full(n_rows, np.nan)
    return Wide(
        members=members,
        halves=halves[order],
        rank=order.astype(np.int32),
        refusals=refusals[order],
        labels={name: Coded(label.codes[order], label.values) for name, label in labels.items()},
        numbers={**{name: held[order] for name, held in numbers.items()}, "n_response_tokens": tokens[order]},
        nll_sum=nll_sum[order],
        n_tokens=n_tokens[order],
        mean_nll=mean_nll[order],
        lacks=np.packbits(np.isnan(mean_nll[order]), axis=1),
        bounds=np.stack([_block_max(limit[order]) for limit in limits], axis=1) if limits else np.zeros((0, 0)),
        digests=digests,
    )


def _limits(aligned: Floats, misaligned: Floats, size: int) -> Floats:
    """`bounds` of all rows, a piece at a time."""
    starts = range(0, len(aligned), _BOUND_ROWS)
    pieces = [bounds(aligned[i : i + _BOUND_ROWS], misaligned[i : i + _BOUND_ROWS], size) for i in starts]
    return np.concatenate([np.zeros(0), *pieces])


def _block_max(limit: Floats) -> Floats:
    if not len(limit):
        return limit
    highest: Floats = np.fmax.reduceat(limit, np.arange(0, len(limit), BLOCK_ROWS))
    return highest


def _sha256(*arrays: npt.NDArray[np.generic]) -> str:
    digest = hashlib.sha256()
    for held in arrays:
        digest.update(np.ascontiguousarray(held).tobytes())
    return digest.hexdigest()


def _label_sha256(label: Coded) -> str:
    """Over the texts, joined; the codes depend on nothing but them."""
    texts = orjson.dumps(label.values)
    return hashlib.sha256(texts + label.codes.astype("<i4").tobytes()).hexdigest()
