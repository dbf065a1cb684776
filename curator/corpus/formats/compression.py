"""Files packed with gzip or Zstandard, read as if they were not, in flat memory and up to a bound."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from shutil import copyfileobj
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from curator.errors import BadInputError, UnpackedTooLargeError, is_out_of_service

_MAGIC = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
BUFFER_BYTES = 2**18
# Chat data packs to a fifth. Short rows that share a prompt of 8 KiB pack to a 201st (Zstandard) or, since columns hold
# a repeated text once, to a 318th (Parquet); with a longer one they may have to be sent unpacked.
MAX_RATIO = 250
MAX_RATIO_OF_COLUMNS = 1_000
FREE_BYTES = 2**23  # that come out before the ratio is asked


class DamagedPackError(BadInputError):
    """The packed bytes end too early or are damaged; what came before was whole."""

    code = "invalid_compression"


def packing_of(head: bytes) -> str | None:
    """`gzip` or `zstd` by the first bytes of a file; None for others."""
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)


def unpacked_bound(n_packed: int, max_bytes: int | None, ratio: int = MAX_RATIO) -> int | None:
    """Bytes that this many packed ones may unpack to under `max_bytes`; None without it."""
    return None if max_bytes is None else min(max_bytes, max(FREE_BYTES, ratio * n_packed))


@contextmanager
def unpacked(file: BinaryIO, max_bytes: int | None = None) -> Iterator[BinaryIO]:
    """The file's own bytes from its start, unpacked where it is packed; it reads forwards only.

    With `max_bytes`, reading raises UnpackedTooLargeError once more come out of a packed file, whatever it claims of
    itself, or more than `MAX_RATIO` times the bytes that went in. It raises DamagedPackError where the packed bytes
    are damaged or end early.
    """
    file.seek(0)
    packing = packing_of(file.read(4))
    file.seek(0)
    if packing is None:
        yield file
        return
    with io.BufferedReader(_Unpacking(file, packing, max_bytes), BUFFER_BYTES) as stream:
        yield stream


@contextmanager
def seekable(file: BinaryIO) -> Iterator[BinaryIO]:
    """The same bytes in a file that can be searched: a temporary one for what was unpacked."""
    if file.seekable():
        yield file
        return
    with TemporaryFile(prefix="ballast-") as copy:
        copyfileobj(file, copy, BUFFER_BYTES)
        copy.seek(0)
        yield copy


class _Unpacking(io.RawIOBase):
    """Arrow's decompressor as a raw file: unlike others it tells a cut-off Zstandard frame from a whole one."""

    def __init__(self, file: BinaryIO, packing: str, max_bytes: int | None) -> None:
        import pyarrow as pa

        self._packed = _Open(file)
        self._stream: Any = pa.CompressedInputStream(pa.PythonFile(self._packed, mode="r"), packing)
        self._packing, self._max_bytes, self._done = packing, max_bytes, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        import pyarrow as pa

        try:
            data = self._stream.read(len(buffer))
        except (pa.ArrowException, OSError) as error:
            if is_out_of_service(error):
                raise
            raise DamagedPackError(f"the {self._packing} data is damaged or ends early: {error}") from error
        self._done += len(data)
        if self._max_bytes is not None and self._done > self._max_bytes:
            raise UnpackedTooLargeError(f"the {self._packing} file unpacks to more than {self._max_bytes:,} bytes")
        bound = unpacked_bound(self._packed.n_read, self._max_bytes)
        if bound is not None and self._done > bound:
            raise UnpackedTooLargeError(
                f"the {self._packing} file unpacks to more than {MAX_RATIO} times its size: send it unpacked"
            )
        buffer[: len(data)] = data
        return len(data)


class _Open:
    """Keeps Arrow from closing a file that is not its own, and counts what it reads."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.n_read = file, 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.n_read += len(data)
        return data

    def close(self) -> None:
        """Nothing: whoever opened the file closes it."""
