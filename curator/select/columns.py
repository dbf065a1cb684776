"""Columns of a pool as arrays: ids, and labels by code. Pure values, so that millions of rows are no Python objects."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
Ranks = npt.NDArray[np.int64] | npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]
Codes = npt.NDArray[np.integer]
Numbers = npt.NDArray[np.int32] | Floats

_FEW_VALUES = 4  # that are told apart by comparing, which beats looking each code up
_COUNT_ROWS = 1 << 17
_BITS = 20  # of an id's first half: a table of 1 MiB rules out nearly all rows that are not looked for


class Masked(Protocol):
    """A mask that is read by stretches: an array, or one that is made where it is looked at."""

    def __getitem__(self, rows: slice, /) -> Mask:
        """The mask of these rows."""
        ...


@dataclass(frozen=True)
class Holding:
    """The masked rows whose code is `code`, by stretches."""

    left: Mask
    codes: Codes
    code: int

    def __getitem__(self, rows: slice, /) -> Mask:
        """The mask of these rows."""
        mask: Mask = self.left[rows] & (self.codes[rows] == self.code)
        return mask


class Ids(Protocol):
    """The ids of a pool's rows, as text."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[str]: ...

    def __getitem__(self, row: int) -> str: ...

    def texts(self, rows: Indices) -> list[str]:
        """The ids of these rows, in their order."""
        ...

    def held(self, wanted: Collection[str]) -> Indices:
        """Rows whose id is among `wanted`, ascending."""
        ...

    @property
    def rank(self) -> Ranks:
        """Each row's place in the order of ids: what ties break on."""
        ...


class TextIds:
    """Ids given as texts of any form."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = list(texts)

    def __len__(self) -> int:
        return len(self._texts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._texts)

    def __getitem__(self, row: int) -> str:
        return self._texts[row]

    def texts(self, rows: Indices) -> list[str]:
        """The ids of these rows, in their order."""
        return [self._texts[row] for row in rows.tolist()]

    def held(self, wanted: Collection[str]) -> Indices:
        """Rows whose id is among `wanted`, ascending."""
        return np.flatnonzero(np.fromiter((item in wanted for item in self._texts), np.bool_, len(self._texts)))

    @cached_property
    def rank(self) -> Indices:
        """Each row's place in the order of ids."""
        ranks = np.empty(len(self._texts), dtype=np.int64)
        ranks[sorted(range(len(self._texts)), key=self._texts.__getitem__)] = np.arange(len(self._texts))
        return ranks


class HashIds:
    """Ids of 128 bits as `halves`, shape (n, 2): the first and the last 64 bits; their text is 32 hex digits.

    `rank` is each row's place in the order of ids, shape (n,).
    """

    def __init__(self, halves: Words, rank: Ranks) -> None:
        self._halves = halves
        self._rank = rank

    def __len__(self) -> int:
        return len(self._halves)

    @property
    def rank(self) -> Ranks:
        """Each row's place in the order of ids."""
        return self._rank

    def __iter__(self) -> Iterator[str]:
        for start in range(0, len(self), 1 << 16):
            yield from _hex(self._halves[start : start + (1 << 16)])

    def __getitem__(self, row: int) -> str:
        return _hex(self._halves[row : row + 1])[0]

    def texts(self, rows: Indices) -> list[str]:
        """The ids of these rows, in their order."""
        return _hex(self._halves[rows])

    def held(self, wanted: Collection[str]) -> Indices:
        """Rows whose id is among `wanted`, which are ids of the same form, ascending."""
        if not wanted:
            return np.zeros(0, dtype=np.int64)
        firsts = np.sort(halves_of(list(wanted))[:, 0])
        may = np.zeros(1 << _BITS, dtype=np.bool_)
        may[firsts >> np.uint64(64 - _BITS)] = True
        column = self._halves[:, 0]
        near = np.flatnonzero(may[column >> np.uint64(64 - _BITS)])
        place = np.minimum(np.searchsorted(firsts, column[near]), len(firsts) - 1)
        near = np.compress(firsts[place] == column[near], near)
        found = np.fromiter((item in wanted for item in self.texts(near)), np.bool_, len(near))
        return near[found]

    @cached_property
    def _by_id(self) -> tuple[Words, Indices]:
        """First halves in the order of ids, and the row of each."""
        rows = np.empty(len(self), dtype=np.int64)
        rows[self._rank] = np.arange(len(self))
        return self._halves[rows, 0], rows

    def rows_of(self, ids: Sequence[str]) -> Indices:
        """The row of each id, -1 where it is none of these; shape (len(ids),)."""
        if not len(self) or not ids:
            return np.full(len(ids), -1, dtype=np.int64)
        wanted = halves_of(ids)
        firsts, rows = self._by_id
        place = np.minimum(np.searchsorted(firsts, wanted[:, 0]), len(firsts) - 1)
        same = (self._halves[rows[place]] == wanted).all(axis=1)
        for i in np.flatnonzero(~same).tolist():  # unknown, or one of several with the same first half
            while place[i] + 1 < len(rows) and firsts[place[i] + 1] == wanted[i, 0] and not same[i]:
                place[i] += 1
                same[i] = bool((self._halves[rows[place[i]]] == wanted[i]).all())
        return np.where(same, rows[place], -1)


def hash_ids(ids: Sequence[str]) -> HashIds:
    """Ids given as 32 hex digits each."""
    return HashIds(halves_of(ids), TextIds(ids).rank)


def halves_of(ids: Sequence[str]) -> Words:
    """The halves of ids given as 32 hex digits, shape (n, 2), whose order is that of the texts."""
    data = np.frombuffer(bytes.fromhex("".join(ids)), dtype=">u8")
    return data.reshape(-1, 2).astype(np.uint64)


def _hex(halves: Words) -> list[str]:
    text = halves.astype(">u8").tobytes().hex()
    return [text[start : start + 32] for start in range(0, len(text), 32)]


@dataclass(frozen=True)
class Coded:
    """A text column: `codes` have shape (n,), each the place of the row's text in `values`, -1 where it has none."""

    codes: npt.NDArray[np.integer]
    values: tuple[str, ...]

    @classmethod
    def of(cls, texts: Sequence[str | None]) -> "Coded":
        """The column of these texts; `values` are sorted."""
        values = tuple(sorted({text for text in texts if text is not None}))
        code = {text: place for place, text in enumerate(values)}
        found = (-1 if text is None else code[text] for text in texts)
        return cls(np.fromiter(found, dtype=code_type(len(values)), count=len(texts)), values)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, row: int) -> str | None:
        code = int(self.codes[row])
        return None if code < 0 else self.values[code]

    def texts(self, rows: Indices) -> list[str | None]:
        """The texts of these rows, in their order."""
        return [None if code < 0 else self.values[code] for code in self.codes[rows].tolist()]

    def where(self, test: Callable[[str], bool]) -> Mask:
        """Rows whose text passes a test, shape (n,); a row without a text does not."""
        passes = [*map(test, self.values), False]  # code -1 is the last
        few = [code for code, passed in enumerate(passes[:-1]) if passed]
        if len(few) <= _FEW_VALUES:
            mask = np.zeros(len(self), dtype=np.bool_)
            for code in few:
                mask |= self.codes == code
            return mask
        if len(passes) - len(few) <= _FEW_VALUES:
            mask = self.codes >= 0
            for code in set(range(len(self.values))) - set(few):
                mask &= self.codes != code
            return mask
        looked_up: Mask = np.array(passes, dtype=np.bool_)[self.codes]
        return looked_up

    def count(self, left: Mask) -> list[int]:
        """How many of the masked rows have each value, a stretch at a time."""
        counts = np.zeros(len(self.values) + 1, dtype=np.int64)
        for start in range(0, len(self), _COUNT_ROWS):
            rows = slice(start, start + _COUNT_ROWS)
            places = np.where(left[rows], self.codes[rows].astype(np.int64), -1) + 1
            counts += np.bincount(places, minlength=len(counts))
        return [int(count) for count in counts[1:]]

    @property
    def missing(self) -> Mask:
        """Rows without a text, shape (n,)."""
        missing: Mask = self.codes < 0
        return missing


def code_type(n_values: int) -> type[np.signedinteger[Any]]:
    """The smallest integers that hold the codes of so many values, and -1."""
    return np.int8 if n_values <= 127 else np.int16 if n_values <= 32_767 else np.int32
