"""The pool as a table: every row of a corpus revision beside its losses, made when a scorer is published.

    pools/<corpus>/pool-<key>.arrow                    the frame (`curator.select.pool_frame`); its metadata has digests
    pools/<corpus>/texts-<part>-<state>.arrow          messages (`curator.select.pool_texts`)
    pools/<corpus>/signatures-<side>-<key>.npy         MinHash signatures of all rows, made when first needed

Frames and texts are mapped: opening a pool reads nothing, and a mix reads what it looks at, without decoding it.

All of it is a cache: never hashed, and made again when an input changed, since the key names everything that a file
follows from. Any of it can be deleted at any time. Small corpora, and those in a store that cannot be written or is not
on this machine, are read into memory; the answers are the same.
"""

import hashlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa

from curator.console import Progress
from curator.corpus.manifest import Corpus, Scorer, read_corpus, read_scorers
from curator.corpus.text import texts_of
from curator.errors import StoreError
from curator.query.gaps import Gaps, GapSpec, definitions
from curator.query.scorers import ResolvedScorers
from curator.recipe.filters import TextPart
from curator.select.candidates import Candidates, Rows
from curator.select.duplicates import signed
from curator.select.minhash import N_PERMUTATIONS, Signatures, algorithm
from curator.select.pool_columns import PoolColumns, PoolIds, map_frame, write_frame
from curator.select.pool_frame import LABELS, Member, digests, id_texts, members_of, pool_frame
from curator.select.pool_texts import PoolTexts, text_bytes, texts_path, write_texts
from curator.select.scores import GapChoice, GapScores
from curator.store.filesystem import atomic_write
from curator.store.schema import MIX_ROWS, arrow_schema
from curator.store.store import Store

POOL_FORMAT_VERSION = 2  # raised when a frame has other columns
# Corpora of fewer rows and shorter texts are read whole and held in memory; others are kept on disk.
KEEP_FROM_ROWS = 20_000
KEEP_FROM_TEXT_BYTES = 4 << 20
KEPT = 4  # pools of one corpus that stay on disk, and pools that stay open
KEPT_ANSWERS = 8  # of a pool's filters: of a million rows about a megabyte each
HELD_BYTES = 1 << 30  # of frames in memory, over which the oldest open pools are closed
GAPS_BYTES = 1 << 28  # of one pool's gaps in memory, over which those of older choices go
_QUANTILES = {"min": 0.0, "p05": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p95": 0.95, "max": 1.0}
_SIGN_ROWS = 8_192


@dataclass(frozen=True)
class PoolTable:
    """One pool: its columns, texts and members. `digests` are SHA-256 of ids, labels and each member's losses.

    `quantiles` are those of the gap over all misaligned members (null without a score), `folder` is where its files
    lie (None where it is held in memory alone).
    """

    n_rows: int
    members: tuple[Member, ...]
    digests: Mapping[str, str]
    quantiles: Mapping[str, float] | None
    columns: PoolColumns
    texts: PoolTexts
    gaps: Gaps
    folder: Path | None = None
    signatures_key: str = ""
    _turn: threading.Lock = field(default_factory=threading.Lock, compare=False, repr=False)
    # Gaps of the latest choices, the oldest first.
    _held: dict[object, pl.DataFrame] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return self.n_rows

    def choice(self, name: str, scorer_ids: Collection[str], spec: GapSpec) -> GapChoice:
        """The gap over these scorers, which are members; the aligned one need not be named."""
        places = [i for i, member in enumerate(self.members) if member.scorer_id in scorer_ids]
        found = {role: tuple(i for i in places if self.members[i].role == role) for role in ("misaligned", "benign")}
        n_misaligned = sum(member.role == "misaligned" for member in self.members)
        of_all = len(found["misaligned"]) == n_misaligned > 0
        return GapChoice(name, found["misaligned"], found["benign"], spec, of_all)

    def scores(self, choice: GapChoice) -> GapScores:
        """The scores of that gap."""
        return GapScores(self.n_rows, self.columns, self.gaps, choice)

    def candidates(self, choice: GapChoice) -> Candidates:
        """The rows as filters and strategies see them."""
        return Candidates(
            self.n_rows, self.columns, self.ids, self.scores(choice), self.texts, self.texts.reading_order,
            None if self.folder is None else self.signatures,
            lambda key, make: self._remembered((choice, key), make),
        )  # fmt: skip

    def _remembered(self, key: Any, make: Callable[[], Any]) -> Any:
        found = self._answers.get(key)
        if found is None:
            found = make()
            if len(self._answers) >= KEPT_ANSWERS:
                self._answers.clear()
            self._answers[key] = found
        return found

    @cached_property
    def _answers(self) -> dict[Any, Any]:
        """What filters left, by gap and filters."""
        return {}

    @cached_property
    def ids(self) -> PoolIds:
        """The rows' ids."""
        return PoolIds(self.columns)

    def rows(self, at: Rows, choice: GapChoice) -> pa.Table:
        """Some rows for a mix: id, labels, every loss that the gap used, and all four gaps (sql/wide/gap.sql)."""
        if self.n_rows >= KEEP_FROM_ROWS:
            return self._rows(at, choice)
        # All rows of a small pool once: to ask DuckDB for a few of them takes as long.
        whole = self._whole.get(choice)
        if whole is None:
            self._whole.clear()
            whole = self._whole[choice] = self._rows(np.arange(self.n_rows), choice)
        return whole.take(pa.array(at))

    @cached_property
    def _whole(self) -> dict[GapChoice, pa.Table]:
        """All rows for the gap requested last."""
        return {}

    def _rows(self, at: Rows, choice: GapChoice) -> pa.Table:
        places = [0, *choice.misaligned, *choice.benign] if self.members else []
        losses = [f"{name}_{place}" for place in places for name in ("mean_nll", "nll_sum", "n_tokens")]
        found = self.columns.at(at, "id_hi", "id_lo", *LABELS, "n_response_tokens", *losses)
        ids = pl.Series("example_id", id_texts(found["id_hi"].to_numpy(), found["id_lo"].to_numpy()), dtype=pl.String)
        gaps = self.gaps.columns(choice.losses(found), choice.spec)
        labels = found.select(pl.col(LABELS).cast(pl.String))
        return labels.hstack(gaps).hstack([ids]).to_arrow().append_column("losses", self._losses(found, places))

    def _losses(self, rows: pl.DataFrame, places: Sequence[int]) -> pa.Array:
        """Each row's list of losses under these members, null where it has none."""
        kind = arrow_schema(MIX_ROWS).field("losses").type
        if not places:
            return pa.nulls(rows.height, kind)
        row = pl.int_range(pl.len(), dtype=pl.UInt32).alias("row")
        pieces = [
            rows.select(
                row, pl.lit(order).alias("order"), pl.lit(self.members[place].scorer_id).alias("scorer_id"),
                pl.col(f"nll_sum_{place}").alias("nll_sum"), pl.col(f"n_tokens_{place}").alias("n_response_tokens"),
            )
            for order, place in enumerate(places)
        ]  # fmt: skip
        entry = pl.struct("scorer_id", "nll_sum", "n_response_tokens").sort_by("order")
        lists = pl.concat(pieces).drop_nulls("nll_sum").group_by("row").agg(entry.alias("losses"))
        every = rows.select(row)
        return every.join(lists, on="row", how="left", maintain_order="left")["losses"].to_arrow().cast(kind)

    def gap_columns(self, choice: GapChoice) -> pl.DataFrame:
        """Losses and all four gaps of every row, and how many of the losses are missing (sql/wide/gap_rows.sql).

        Those of the latest choices are held, since the figures of one corpus ask for them again and again.
        """
        key = (choice.misaligned, choice.benign, choice.spec)
        with self._turn:
            found = self._held.pop(key, None)
            if found is None:
                found = self.gaps.columns(choice.losses(self.columns(*choice.columns)), choice.spec).hstack(
                    [self._n_missing((0, *choice.misaligned), "n_losses_missing"),
                     self._n_missing(choice.benign, "n_benign_missing")]
                )  # fmt: skip
            self._held[key] = found
            while len(self._held) > 1 and sum(int(item.estimated_size()) for item in self._held.values()) > GAPS_BYTES:
                self._held.pop(next(iter(self._held)))
        return found

    def _n_missing(self, places: Sequence[int], name: str) -> pl.Series:
        names = [f"has_loss_{place}" for place in places]
        if not names:
            return pl.repeat(0, self.n_rows, dtype=pl.UInt32, eager=True).alias(name)
        there = self.columns(*names)
        return there.select((pl.lit(len(names)) - pl.sum_horizontal(names)).cast(pl.UInt32).alias(name)).to_series()

    def signatures(self, part: TextPart) -> Signatures:
        """MinHash signatures of one side of every row's text, kept beside the pool file (where it is) once made.

        Raises what reading the texts raises.
        """
        if self.folder is None:
            return self._sign(part)
        path = self.folder / f"signatures-{part}-{algorithm().replace('/', '-')}-{self.signatures_key}.npy"
        with suppress(OSError, ValueError):
            held = np.load(path, mmap_mode="r")
            if held.shape == (N_PERMUTATIONS, self.n_rows) and held.dtype == np.uint32:
                kept: Signatures = held
                return kept
        made = self._sign(part)
        # A store that cannot be written makes them each time.
        with suppress(StoreError), atomic_write(path, durable=True) as temporary, temporary.open("wb") as file:
            np.save(file, made)
        _sweep(self.folder, f"signatures-{part}-*.npy", path)
        return made

    def _sign(self, part: TextPart) -> Signatures:
        made = np.zeros((N_PERMUTATIONS, self.n_rows), dtype=np.uint32)
        order = self.texts.reading_order(np.arange(self.n_rows))
        with Progress(self.n_rows, "rows", "signing texts") as bar:
            for start in range(0, self.n_rows, _SIGN_ROWS):
                rows = order[start : start + _SIGN_ROWS]
                made[:, rows] = signed([texts_of(self.texts(rows), part)])
                bar.advance(len(rows))
        return made


class PoolCache:
    """Open pools by key: at most `KEPT`, and as many as hold `HELD_BYTES`; for any number of threads.

    One connection computes the gaps of all of them.
    """

    def __init__(self) -> None:
        self.gaps = Gaps()
        self._lock = threading.Lock()
        self._open: dict[str, PoolTable] = {}
        self._turns: dict[str, threading.Lock] = {}

    def get(self, store: Store, corpus: Corpus, scorers: Sequence[Scorer]) -> PoolTable:
        """The pool of a corpus revision and the scorers of one measure: open, from its file, or made now."""
        found = self._find(store, corpus, scorers, _pool_table)
        assert found is not None
        return found

    def find(self, store: Store, corpus: Corpus, scorers: Sequence[Scorer]) -> PoolTable | None:
        """The same where it is open or its file is there; None instead of making it, which takes minutes."""
        return self._find(store, corpus, scorers, _made_before)

    def _find(self, store: Store, corpus: Corpus, scorers: Sequence[Scorer], opening: "_Opening") -> PoolTable | None:
        key = pool_key(store, corpus, scorers)
        with self._lock:
            turn = self._turns.setdefault(key, threading.Lock())
        with turn:  # others wait for this pool alone
            found = self._open.get(key) or opening(store, corpus, scorers, key, self.gaps)
        if found is None:
            with self._lock:
                self._turns.pop(key, None)
            return None
        with self._lock:
            self._open.pop(key, None)
            self._open[key] = found
            while len(self._open) > KEPT or (len(self._open) > 1 and self._n_bytes() > HELD_BYTES):
                oldest = next(iter(self._open))
                self._open.pop(oldest)
                self._turns.pop(oldest, None)
        return found

    def _n_bytes(self) -> int:
        return sum(table.columns.n_bytes for table in self._open.values())

    def clear(self) -> None:
        """Close all pools."""
        with self._lock:
            self._open.clear()
            self._turns.clear()


POOLS = PoolCache()  # of this process


def pool_table(store: Store, scorers: ResolvedScorers, cache: PoolCache = POOLS) -> PoolTable:
    """The pool that these scorers belong to, with all scorers of their measure.

    Raises what reading the corpus and its scores raises.
    """
    corpus = read_corpus(store, scorers.corpus, scorers.revision)
    found = cache.get(store, corpus, scorers_of_measure(store, corpus, scorers.aligned))
    if found.folder is not None:
        return found
    if _is_small(store, corpus):
        return found
    # In a store that cannot be written: texts that are read whole are not held longer than one mix needs them.
    return replace(found, texts=PoolTexts(store, corpus, _places(found.columns)))


def publish_pool(store: Store, corpus: str, measure_id: str | None = None) -> list[PoolTable]:
    """Make the pool files that mixes of a corpus read, where they are missing; for the end of a scoring run or import.

    Those of one measure, or of all. None are made for a measure whose scorers give no gap yet, nor for a corpus that is
    read into memory. Raises what reading the corpus and its scores raises.
    """
    latest = read_corpus(store, corpus)
    if _is_small(store, latest):
        return []
    found = []
    for scorer in read_scorers(store, latest):
        if scorer.role == "aligned" and scorer.complete and measure_id in (None, scorer.measure_id):
            scorers = scorers_of_measure(store, latest, scorer)
            if any(item.role == "misaligned" for item in scorers):
                found.append(POOLS.get(store, latest, scorers))
    return [table for table in found if table.folder is not None]


def score_quantiles(scores: pl.Series) -> dict[str, float] | None:
    """Quantiles over the rows that have a score, by name; None where no row has."""
    known = scores.drop_nulls().to_numpy()
    if not len(known):
        return None
    values = np.quantile(known, list(_QUANTILES.values()), method="inverted_cdf").tolist()
    return {"n": len(known), **dict(zip(_QUANTILES, values, strict=True))}


def pool_key(store: Store, corpus: Corpus, scorers: Sequence[Scorer]) -> str:
    """A hash of the manifests that a pool follows from, and of size and time of every part they name."""
    paths = [f"corpora/{corpus.name}/corpus.json"]
    paths += [f"scores/{corpus.name}/{item.scorer_id}/scorer.json" for item in scorers]
    digest = hashlib.blake2b(f"{POOL_FORMAT_VERSION} {store.base} {corpus.revision}".encode(), digest_size=16)
    digest.update(definitions().encode())
    for path in paths:
        digest.update(store.read_bytes(path))
    parts = [*corpus.parts, *(path for paths in corpus.sources for path in paths)]
    for path in (*parts, *(path for item in scorers for path in item.parts)):
        digest.update(f"{path} {store.file_state(path)}".encode())
    return digest.hexdigest()


def scorers_of_measure(store: Store, corpus: Corpus, aligned: Scorer | None) -> list[Scorer]:
    """The aligned scorer and every complete one that may share a gap with it."""
    if aligned is None:
        return []
    known = [item for item in read_scorers(store, corpus) if item.complete and item.measure_id == aligned.measure_id]
    by_id = sorted(known, key=lambda item: item.scorer_id)
    return [aligned, *(item for role in ("misaligned", "benign") for item in by_id if item.role == role)]


_Opening = Callable[[Store, Corpus, Sequence[Scorer], str, Gaps], PoolTable | None]


def _made_before(store: Store, corpus: Corpus, scorers: Sequence[Scorer], key: str, gaps: Gaps) -> PoolTable | None:
    folder = store.local_path(f"pools/{corpus.name}")
    return None if folder is None else _from_file(store, corpus, scorers, folder / f"pool-{key}.arrow", gaps)


def _pool_table(store: Store, corpus: Corpus, scorers: Sequence[Scorer], key: str, gaps: Gaps) -> PoolTable:
    folder = store.local_path(f"pools/{corpus.name}")
    if folder is None or _is_small(store, corpus):
        return _in_memory(store, corpus, scorers, gaps)
    path = folder / f"pool-{key}.arrow"
    if found := _from_file(store, corpus, scorers, path, gaps):
        return found
    made = _in_memory(store, corpus, scorers, gaps)
    try:
        _keep_frame(made, path)
    except (StoreError, OSError):  # a store that cannot be written is mixed from all the same
        return made
    return _from_file(store, corpus, scorers, path, gaps) or made  # another process may sweep files in this moment


def _is_small(store: Store, corpus: Corpus) -> bool:
    """Whether a corpus is read whole and held: a file would not be found faster."""
    return corpus.n_examples < KEEP_FROM_ROWS and text_bytes(store, corpus) < KEEP_FROM_TEXT_BYTES


def _in_memory(store: Store, corpus: Corpus, scorers: Sequence[Scorer], gaps: Gaps) -> PoolTable:
    frame, members = pool_frame(store, corpus, scorers, gaps), members_of(scorers)
    columns = PoolColumns(frame)
    quantiles = score_quantiles(frame["gap"]) if "gap" in frame.columns else None
    texts = PoolTexts(store, corpus, _places(columns))
    return PoolTable(frame.height, members, digests(frame, members), quantiles, columns, texts, gaps)


def _from_file(store: Store, corpus: Corpus, scorers: Sequence[Scorer], path: Path, gaps: Gaps) -> PoolTable | None:
    """The pool whose frame lies at `path`; None where there is none that can be read."""
    with suppress(OSError, pa.ArrowException, KeyError, orjson.JSONDecodeError):
        table, document = map_frame(path)
        columns = PoolColumns(table)
        texts = PoolTexts(store, corpus, _places(columns), _text_files(store, corpus))
        return PoolTable(
            document["n_rows"], members_of(scorers), document["digests"], document["quantiles"], columns, texts, gaps,
            path.parent, _signatures_key(store, corpus),
        )  # fmt: skip
    return None


def _keep_frame(made: PoolTable, path: Path) -> None:
    document = {"n_rows": made.n_rows, "digests": made.digests, "quantiles": made.quantiles}
    with atomic_write(path, durable=True) as temporary:  # a file that is there is read without a checksum
        write_frame(made.columns.frame, temporary, document)
    _sweep(path.parent, "pool-*", path)


def _text_files(store: Store, corpus: Corpus) -> list[Path] | None:
    """The files of the texts of all parts, written where they are missing; None where they cannot be."""
    found = []
    for part in corpus.parts:
        path = texts_path(store, corpus, part)
        try:
            assert path is not None
            if not path.exists():
                write_texts(store, part, path)
        except (StoreError, OSError):
            return None
        found.append(path)
    return found


def _signatures_key(store: Store, corpus: Corpus) -> str:
    """Signatures follow from the texts in the order of their ids."""
    states = [corpus.revision, *(f"{part} {store.file_state(part)}" for part in corpus.parts)]
    return hashlib.blake2b("\n".join(states).encode(), digest_size=8).hexdigest()


def _places(columns: PoolColumns) -> Callable[[Rows], Rows]:
    """Places of rows in the corpus, all of its parts one after the other."""

    def places(rows: Rows) -> Rows:
        return columns("text_place")["text_place"].gather(rows).cast(pl.Int64).to_numpy()

    return places


def _sweep(folder: Path, pattern: str, newest: Path) -> None:
    """Remove all but the newest files of a kind."""
    with suppress(OSError):  # another process sweeps too
        others = sorted(
            (path for path in folder.glob(pattern) if path != newest), key=lambda path: path.stat().st_mtime
        )
        for path in others[: max(0, len(others) - KEPT + 1)]:
            path.unlink()
