"""How large the packed batches of an Arrow IPC file or stream are once unpacked, before any of them is read.

A batch is unpacked whole, so what counts is what the head of each packed buffer says of its size. The messages are
FlatBuffers (Message.fbs and File.fbs of https://github.com/apache/arrow), read here as far as needed.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from curator.corpus.formats.budget import MIB
from curator.errors import BadInputError

ARROW_FILE = b"ARROW1"
MAX_HEAD_BYTES = 16 * MIB
_CONTINUATION = 0xFFFFFFFF
_DICTIONARY_BATCH, _RECORD_BATCH = 2, 3


def check_batches(file: BinaryIO, max_batch_bytes: int) -> None:
    """Refuse a seekable file with a packed batch of more than so many bytes: raises BadInputError.

    What is damaged is passed over here: reading will say how.
    """
    try:
        for place, size in _blocks(file):
            n_bytes = _unpacked_bytes(file, place, size)
            if n_bytes > max_batch_bytes:
                raise BadInputError(
                    f"a batch of the Arrow file unpacks to {n_bytes:,} bytes, of which {max_batch_bytes:,} are read: "
                    f"write batches of fewer rows, or raise max_row_bytes (--max-row-bytes)"
                )
    except (struct.error, IndexError, ValueError) as error:
        if isinstance(error, BadInputError):
            raise
    finally:
        file.seek(0)


def _blocks(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Where each message's FlatBuffer stands, and its size."""
    end = file.seek(0, 2)
    file.seek(0)
    at = 0
    if file.read(6) == ARROW_FILE:
        file.seek(-10, 2)
        (size,) = struct.unpack("<i", file.read(4))
        file.seek(end - 10 - size)
        footer = _Table.root(file.read(min(size, MAX_HEAD_BYTES)))
        starts = [struct.unpack("<q", block[:8])[0] for field in (2, 3) for block in footer.structs(field, 24)]
        for start in starts:
            yield from _message(file, start)
        return
    while at < end:
        for place, size in _message(file, at):
            yield place, size
            body = _Table.root(_read(file, place, size)).number(3, "<q", 0)
            at = (place + size + body + 7) // 8 * 8
            break
        else:
            return


def _message(file: BinaryIO, at: int) -> Iterator[tuple[int, int]]:
    if at < 0:
        return
    head = _read(file, at, 8)
    first, second = struct.unpack("<II", head)
    place, size = (at + 8, second) if first == _CONTINUATION else (at + 4, first)
    if size > MAX_HEAD_BYTES:
        raise BadInputError(f"the head of an Arrow batch has {size:,} bytes: at most {MAX_HEAD_BYTES:,} are read")
    if size:
        yield place, size


def _unpacked_bytes(file: BinaryIO, place: int, size: int) -> int:
    message = _Table.root(_read(file, place, size))
    kind, batch = message.number(1, "<B", 0), message.table(2)
    if kind == _DICTIONARY_BATCH and batch is not None:
        batch = batch.table(1)
    elif kind != _RECORD_BATCH:
        return 0
    if batch is None or batch.table(3) is None:
        return 0  # it is not packed: as large as it lies in the file
    total = 0
    for buffer in batch.structs(2, 16):
        offset, length = struct.unpack("<qq", buffer)
        if length >= 8 and offset >= 0:
            (claimed,) = struct.unpack("<q", _read(file, place + size + offset, 8))
            total += length if claimed < 0 else claimed
    return total


def _read(file: BinaryIO, at: int, n_bytes: int) -> bytes:
    file.seek(at)
    return file.read(n_bytes)


class _Table:
    """A table of a FlatBuffer; its fields are found by their number."""

    def __init__(self, data: bytes, at: int) -> None:
        self.data, self.at = data, at
        self._fields = at - struct.unpack_from("<i", data, at)[0]
        self._n_bytes = struct.unpack_from("<H", data, self._fields)[0]

    @classmethod
    def root(cls, data: bytes) -> "_Table":
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def _place(self, field: int) -> int | None:
        entry = 4 + 2 * field
        if entry + 2 > self._n_bytes:
            return None
        offset = struct.unpack_from("<H", self.data, self._fields + entry)[0]
        return self.at + offset if offset else None

    def number(self, field: int, form: str, default: int) -> int:
        place = self._place(field)
        return default if place is None else int(struct.unpack_from(form, self.data, place)[0])

    def table(self, field: int) -> "_Table | None":
        place = self._place(field)
        return None if place is None else _Table(self.data, place + struct.unpack_from("<I", self.data, place)[0])

    def structs(self, field: int, n_bytes: int) -> list[bytes]:
        place = self._place(field)
        if place is None:
            return []
        at = place + struct.unpack_from("<I", self.data, place)[0]
        n_items = struct.unpack_from("<I", self.data, at)[0]
        whole = min(n_items, (len(self.data) - at - 4) // n_bytes)
        return [self.data[at + 4 + n_bytes * i : at + 4 + n_bytes * (i + 1)] for i in range(whole)]
