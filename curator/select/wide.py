"""The wide table of one score group: every row of a corpus revision beside its losses under all models of one measure.

Rows stand in the order of the default gap (eps 1, mean of all misaligned models), best first, and blocks of rows carry
bounds on what a gap over fewer models can be. So the best rows are found by looking at few of them, whatever is held
out. It is made from the corpus's parts and losses (`curator.select.pool`) and holds nothing of its own; gaps come from
`sql/` through `curator.query.gaps`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from curator.query.gaps import GapSpec, gaps, score
from curator.recipe import DEFAULT_EPS, RefusalRule, ScoreName
from curator.select.candidates import ALL_ROWS
from curator.select.columns import (
    Coded,
    Floats,
    HashIds,
    Indices,
    Mask,
    Masked,
    Numbers,
)
from curator.select.ranking import ArrayScores, best_by_blocks
from curator.store.schema import MIX_ROWS, arrow_schema

BLOCK_ROWS = 1_024
LABELS = ("source", "domain", "language", "license", "harm")
REFUSAL_BITS: dict[RefusalRule, int] = {"v1": 1, "v2": 2}
_KEPT_SCORES = 4  # of one table, in memory
_FULL_PASS_ROWS = 1 << 20  # rows whose losses are copied at once
_BY_MEAN = ("mean", "min")  # reducers that no mean of as many of the largest losses stays below

Role = Literal["aligned", "misaligned", "benign"]


@dataclass(frozen=True)
class Member:
    """One scorer of the group; members stand in the order aligned, misaligned, benign, each by id."""

    scorer_id: str
    role: Role


@dataclass(frozen=True)
class Choice:
    """The members of one gap, by place, and how their losses become it."""

    name: ScoreName
    misaligned: tuple[int, ...]
    benign: tuple[int, ...]
    spec: GapSpec


@dataclass(frozen=True)
class Wide:
    """The columns, all in one row order; n rows, M members.

    `halves` (n, 2) are the ids and `rank` (n,) their order; `refusals` (n,) has a bit for each rule; `numbers` are
    n_chars, n_turns and n_response_tokens (NaN where the aligned scorer has no loss). `nll_sum` (nats) and `mean_nll`
    (nats per token), both (n, M), are NaN where there is no loss, beside `n_tokens` (n, M); `lacks` (n, M / 8 rounded
    up) has a bit (numpy's packbits) for each loss that is missing. `bounds` (n_blocks, K) holds for each block what no
    default gap over k + 1 of the K misaligned members exceeds, NaN where there is none. `digests` are SHA-256 of ids,
    labels and each member's losses, in the order of the ids.
    """

    members: tuple[Member, ...]
    halves: npt.NDArray[np.uint64]
    rank: npt.NDArray[np.int32]
    refusals: npt.NDArray[np.uint8]
    labels: dict[str, Coded]
    numbers: dict[str, Numbers]
    nll_sum: Floats
    n_tokens: npt.NDArray[np.int32]
    mean_nll: Floats
    lacks: npt.NDArray[np.uint8]
    bounds: Floats
    digests: dict[str, str]
    _cache: dict[Choice, "WideScores"] = field(default_factory=dict, compare=False, repr=False)

    def __len__(self) -> int:
        return len(self.halves)

    @cached_property
    def ids(self) -> HashIds:
        """The rows' ids."""
        return HashIds(self.halves, self.rank)

    def refuses(self, rule: RefusalRule, rows: slice = ALL_ROWS, /) -> Mask:
        """Rows whose last answer opens like a refusal."""
        mask: Mask = (self.refusals[rows] & REFUSAL_BITS[rule]) != 0
        return mask

    def choice(self, name: ScoreName, scorer_ids: Sequence[str], spec: GapSpec) -> Choice:
        """The gap over these scorers, which are members; the aligned one need not be named."""
        place = {member.scorer_id: i for i, member in enumerate(self.members)}
        places = sorted(place[item] for item in scorer_ids)
        found = {role: tuple(i for i in places if self.members[i].role == role) for role in ("misaligned", "benign")}
        return Choice(name, found["misaligned"], found["benign"], spec)

    def scores(self, choice: Choice) -> "WideScores":
        """The scores of that gap; what they have computed is kept with the table."""
        found = self._cache.get(choice)
        if found is None:
            if len(self._cache) >= _KEPT_SCORES:
                self._cache.clear()
            found = self._cache[choice] = WideScores(self, choice)
        return found

    def forget(self) -> None:
        """Drop the scores that were computed, as a benchmark does between its rounds."""
        self._cache.clear()

    def rows(self, at: Indices, choice: Choice) -> pa.Table:
        """Some rows for a mix: id, labels, every loss that the gap used, and all four gaps (sql/wide/gap.sql)."""
        found = gaps(*self.losses(at, choice), choice.spec)
        columns = {name: pa.array(column, from_pandas=True) for name, column in found.items()}
        columns |= {name: pa.array(label.texts(at), pa.string()) for name, label in self.labels.items()}
        ids = pa.array(self.ids.texts(at), pa.string())
        return pa.table({"example_id": ids, **columns, "losses": self._entries(at, choice)})

    def losses(self, at: Indices | slice, choice: Choice) -> tuple[Floats, Floats, Floats, Floats]:
        """Mean losses of the aligned, the misaligned and the benign members, and tokens, as `gaps` takes them."""
        mean = self.mean_nll[at]
        aligned: Floats = mean[:, 0] if self.members else np.full(len(mean), np.nan)
        tokens = self.numbers["n_response_tokens"][at].astype(np.float64, copy=False)
        return aligned, mean[:, list(choice.misaligned)], mean[:, list(choice.benign)], tokens

    def _entries(self, at: Indices, choice: Choice) -> pa.Array:
        places = [0, *choice.misaligned, *choice.benign] if self.members else []
        ids = pa.array([self.members[place].scorer_id for place in places], pa.string())
        there = ~np.isnan(self.mean_nll[at][:, places])
        counts = np.count_nonzero(there, axis=1)
        columns = {
            "scorer_id": ids.take(pa.array(np.nonzero(there)[1])),
            "nll_sum": pa.array(self.nll_sum[at][:, places][there]),
            "n_response_tokens": pa.array(self.n_tokens[at][:, places][there]),
        }
        kind = arrow_schema(MIX_ROWS).field("losses").type
        fields = [*kind.value_type]
        losses = pa.StructArray.from_arrays([columns[field.name] for field in fields], fields=fields)
        offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())
        return pa.ListArray.from_arrays(offsets, losses, kind, mask=pa.array(counts == 0))


@dataclass(frozen=True)
class WideScores:
    """`curator.select.ranking.Scores` over a wide table: only the rows that are asked for are computed."""

    wide: Wide
    choice: Choice
    _blocks: dict[int, Floats] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def known(self) -> Mask:
        """Rows that have a score: none of its losses is missing."""
        if not self.choice.misaligned or (self.choice.spec.eps == 0 and self.choice.name == "gap_rel"):
            return ~np.isnan(self.every)
        contrast = self.choice.name == "gap_contrast"
        if contrast and not self.choice.benign:
            return np.zeros(len(self.wide), dtype=np.bool_)
        needed = np.zeros(len(self.wide.members), dtype=np.bool_)
        needed[[*self.choice.misaligned, *(self.choice.benign if contrast else (0,))]] = True
        wanted = np.packbits(needed)
        missing = self.wide.lacks[:, 0] & wanted[0]
        for byte in range(1, len(wanted)):
            missing |= self.wide.lacks[:, byte] & wanted[byte]
        known: Mask = missing == 0
        return known

    @cached_property
    def every(self) -> Floats:
        """The scores of all rows."""
        if not self.choice.misaligned:
            return np.full(len(self.wide), np.nan)
        starts = range(0, len(self.wide), _FULL_PASS_ROWS)
        pieces = [self._of(slice(start, start + _FULL_PASS_ROWS)) for start in starts]
        return np.concatenate([np.zeros(0), *pieces])

    def at(self, rows: Indices) -> Floats:
        """The scores of these rows."""
        if "every" in self.__dict__ or not self.choice.misaligned:
            return self.every[rows]
        blocks = rows // BLOCK_ROWS
        if all(block in self._blocks for block in np.unique(blocks).tolist()):
            return self._held(rows, blocks)
        return self._of(rows)

    def best(self, among: Masked, n: int) -> Indices:
        """The n best of the masked rows; few are looked at where the group's bounds hold for the score."""
        choice = self.choice
        if choice.name != "gap_rel" or choice.spec.eps != DEFAULT_EPS or not choice.misaligned:
            return ArrayScores(self.every, self.wide.rank).best(among, n)
        size = len(choice.misaligned) if choice.spec.reducer in _BY_MEAN else 1
        return best_by_blocks(among, n, self._by_blocks, self.wide.rank, self.wide.bounds[:, size - 1], BLOCK_ROWS)

    def _by_blocks(self, rows: Indices) -> Floats:
        """The scores of ascending rows, whose blocks are computed whole and kept: other masks ask for the same."""
        blocks = rows // BLOCK_ROWS
        needed = [block for block in np.unique(blocks).tolist() if block not in self._blocks]
        if needed:
            starts = [block * BLOCK_ROWS for block in needed]
            whole = np.concatenate([np.arange(i, min(i + BLOCK_ROWS, len(self.wide))) for i in starts])
            ends = np.flatnonzero(np.diff(whole // BLOCK_ROWS)) + 1
            self._blocks.update(zip(needed, np.split(self._of(whole), ends), strict=True))
        return self._held(rows, blocks)

    def _held(self, rows: Indices, blocks: Indices) -> Floats:
        found, inside = np.empty(len(rows)), rows % BLOCK_ROWS
        edges = [0, *(np.flatnonzero(np.diff(blocks)) + 1).tolist(), len(rows)]
        for start, end in pairwise(edges):
            if end > start:
                found[start:end] = self._blocks[int(blocks[start])][inside[start:end]]
        return found

    def _of(self, rows: Indices | slice) -> Floats:
        return score(self.choice.name, *self.wide.losses(rows, self.choice), self.choice.spec)


__all__ = ["BLOCK_ROWS", "LABELS", "REFUSAL_BITS", "Choice", "Member", "Wide", "WideScores"]
