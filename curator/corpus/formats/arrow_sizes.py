"""How large the rows of an Arrow batch would be as values, from lengths and offsets alone: nothing is copied out.

Buffers are shared: two rows of a list view may hold the same children, and a dictionary, a run or a view may stand for
one long text many times. So the bytes of a batch's buffers say nothing of its rows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from curator.corpus.formats.budget import MAX_DEPTH, MAX_VALUES
from curator.errors import BadInputError

Counts = npt.NDArray[np.int64]  # (rows,)
MAX_ITEMS = 2**22  # whose sizes are reckoned at once
VALUE_BYTES = 8  # what a number, a null or the place of a value counts
_VIEW = np.dtype([("length", "<i4"), ("rest", "V12")])


Cache = dict[tuple[int, ...], tuple[Counts, Counts]]


def row_sizes(batch: Any, cache: Cache) -> tuple[Counts, Counts]:
    """Bytes of texts and numbers, and number of values, of each row of a batch that was validated.

    `cache` keeps the sizes of dictionaries and runs from one slice of the batch to the next. A row with a list of more
    than MAX_VALUES items counts as MAX_VALUES + 1 values without a look at them. Raises BadInputError for a column type
    that cannot be read.
    """
    n_bytes = np.zeros(batch.num_rows, np.int64)
    n_values = np.ones(batch.num_rows, np.int64)
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        more_bytes, more_values = _Sizer(name, cache).sizes(column, 1)
        n_bytes += more_bytes
        n_values += more_values
    return n_bytes, np.minimum(n_values, MAX_VALUES + 1)


@dataclass(frozen=True)
class _Sizer:
    """The sizes of one column's slots."""

    name: str
    cache: Cache

    @property
    def _shown(self) -> str:
        return repr(self.name[:100])

    def sizes(self, array: Any, depth: int) -> tuple[Counts, Counts]:
        import pyarrow as pa

        kind, types = array.type, pa.types
        if depth > MAX_DEPTH:
            raise BadInputError(f"column {self._shown} is nested too deeply: at most {MAX_DEPTH} levels are read")
        if isinstance(array, pa.ExtensionArray):
            return self.sizes(array.storage, depth)
        one = np.ones(len(array), np.int64)
        if types.is_dictionary(kind):
            indices = array.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
            n_bytes, n_values = _taken(self._shared(array.dictionary, depth), indices)
            there = array.indices.is_valid().to_numpy(zero_copy_only=False)
            return np.where(there, n_bytes, VALUE_BYTES), np.where(there, n_values, 1)
        if types.is_run_end_encoded(kind):
            ends = array.run_ends.to_numpy(zero_copy_only=False)
            runs = np.searchsorted(ends, np.arange(array.offset, array.offset + len(array)), side="right")
            return _taken(self._shared(array.values, depth), runs)
        if _is_any(kind, "string", "binary", "large_string", "large_binary"):
            return np.diff(_offsets(array, kind)) + VALUE_BYTES, one
        if _is_any(kind, "string_view", "binary_view"):
            return _view_lengths(array) + VALUE_BYTES, one
        if types.is_struct(kind):
            n_bytes, n_values = one * VALUE_BYTES, one
            for place in range(kind.num_fields):
                more_bytes, more_values = self.sizes(array.field(place), depth + 1)
                n_bytes, n_values = n_bytes + more_bytes, n_values + more_values
            return n_bytes, n_values
        if _is_any(kind, "list", "large_list", "map", "fixed_size_list", "list_view", "large_list_view"):
            return self._list_sizes(array, depth)
        if (
            types.is_null(kind)
            or types.is_primitive(kind)
            or types.is_decimal(kind)
            or types.is_fixed_size_binary(kind)
        ):
            width = kind.byte_width if types.is_fixed_size_binary(kind) else VALUE_BYTES
            return one * max(width, VALUE_BYTES), one
        raise BadInputError(f"column {self._shown} has the type {str(kind)[:100]}, which is not read: write it as text")

    def _list_sizes(self, array: Any, depth: int) -> tuple[Counts, Counts]:
        starts, lengths = _extents(array)
        used = lengths > 0
        if not used.any():
            return np.full(len(array), VALUE_BYTES, np.int64), np.ones(len(array), np.int64)
        first = int(starts[used].min())
        n_items = int((starts + lengths)[used].max()) - first
        long = lengths > MAX_VALUES
        if n_items > MAX_ITEMS:  # those of long lists are not looked at, and those of the others list by list
            n_bytes = np.full(len(array), VALUE_BYTES, np.int64)
            n_values = np.where(long, MAX_VALUES + 1, 1).astype(np.int64)
            for place in np.flatnonzero(~long & (lengths > 0)):
                item_bytes, item_values = self.sizes(array.values.slice(starts[place], lengths[place]), depth + 1)
                n_bytes[place] += item_bytes.sum()
                n_values[place] = min(1 + item_values.sum(), MAX_VALUES + 1)
            return n_bytes, n_values
        places = np.where(used, starts - first, 0)
        item_bytes, item_values = self.sizes(array.values.slice(first, n_items), depth + 1)
        return VALUE_BYTES + _summed(item_bytes, places, lengths), 1 + _summed(item_values, places, lengths)

    def _shared(self, values: Any, depth: int) -> tuple[Counts, Counts]:
        """The sizes of values that several slots may stand for, reckoned once."""
        key = (len(values), values.offset, *(0 if buffer is None else buffer.address for buffer in values.buffers()))
        if len(values) > MAX_ITEMS:
            raise BadInputError(f"column {self._shown} has a dictionary of {len(values):,} values: write it plainly")
        if key not in self.cache:
            self.cache[key] = self.sizes(values, depth + 1)
        return self.cache[key]


def _summed(items: Counts, starts: Counts, lengths: Counts) -> Counts:
    """The sum of `items` over each extent."""
    total = np.concatenate([np.zeros(1, np.int64), np.cumsum(items)])
    summed: Counts = total[starts + lengths] - total[starts]
    return summed


def _extents(array: Any) -> tuple[Counts, Counts]:
    """Where each list's items start in `array.values`, and how many it has; a null has none."""
    kind = array.type
    if _is_any(kind, "fixed_size_list"):
        lengths = np.full(len(array), kind.list_size, np.int64)
        starts = (np.arange(len(array), dtype=np.int64) + array.offset) * kind.list_size
    elif _is_any(kind, "list_view", "large_list_view"):
        starts = array.offsets.to_numpy(zero_copy_only=False).astype(np.int64)
        lengths = array.sizes.to_numpy(zero_copy_only=False).astype(np.int64)
    else:
        offsets = _offsets(array, kind)
        starts, lengths = offsets[:-1], np.diff(offsets)
    if array.null_count:
        lengths = np.where(array.is_valid().to_numpy(zero_copy_only=False), lengths, 0)
    return starts, lengths


def _offsets(array: Any, kind: Any) -> Counts:
    wide = _is_any(kind, "large_string", "large_binary", "large_list")
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(len(array) + 1, np.int64)
    item = np.dtype("<i8" if wide else "<i4")
    found = np.frombuffer(buffer, item, len(array) + 1, array.offset * item.itemsize)
    return found.astype(np.int64)


def _view_lengths(array: Any) -> Counts:
    buffer = array.buffers()[1]
    if buffer is None or not len(array):
        return np.zeros(len(array), np.int64)
    views = np.frombuffer(buffer, _VIEW, len(array), array.offset * _VIEW.itemsize)
    lengths: Counts = np.maximum(views["length"].astype(np.int64), 0)
    return lengths


def _taken(sizes: tuple[Counts, Counts], places: Counts) -> tuple[Counts, Counts]:
    if not len(sizes[0]):
        return np.full(len(places), VALUE_BYTES, np.int64), np.ones(len(places), np.int64)
    return sizes[0][places], sizes[1][places]


def _is_any(kind: Any, *names: str) -> bool:
    import pyarrow as pa

    return any(getattr(pa.types, f"is_{name}")(kind) for name in names)
