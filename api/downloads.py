"""A mix's stored rows as bytes to send: pages of rows, and whole downloads in four formats.

Conditional and range requests (RFC 9110): entity tags, If-None-Match, If-Range, one byte range.

Downloads kept as files of this machine: what was made once of a large mix is sent as a file the next time.

A copy is made while its first download is sent, named only when it is whole, and removed with its mix, when the space
is needed, or with the process. Who may read it is decided before, by the mix's manifest.
"""

import contextlib
import hashlib
import io
import os
import re
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from curator.errors import IntegrityError
from curator.mix.files import MIX_FILE, json_lines, message_lines, mix_batches, mix_path, row_lines
from curator.mix.identity import Manifest
from curator.store.scratch import Scratch
from curator.store.store import Store

_ETAG = re.compile(r'(?:W/)?"[^"]*"')
_RANGE = re.compile(r"bytes\s*=\s*(\d*)\s*-\s*(\d*)")


def strong_etag(content_hash: str) -> str:
    """An entity tag that promises the same bytes."""
    return f'"{content_hash}"'


def weak_etag(content_hash: str) -> str:
    """An entity tag that promises the same content, though perhaps other bytes."""
    return f'W/"{content_hash}"'


def none_match(header: str | None, etag: str) -> bool:
    """Whether If-None-Match names `etag` (weak comparison), so that 304 is the answer."""
    if header is None:
        return False
    if header.strip() == "*":
        return True
    return any(_opaque(found) == _opaque(etag) for found in _ETAG.findall(header))


def some_match(header: str, etag: str) -> bool:
    """Whether If-Match names `etag` (strong comparison: a weak tag never fits), so that the request may go on."""
    if header.strip() == "*":
        return True
    return not etag.startswith("W/") and etag in _ETAG.findall(header)


@dataclass(frozen=True)
class ByteRange:
    """Bytes `start` up to but not including `stop` of a file."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


class UnsatisfiableRangeError(ValueError):
    """The requested range lies outside the file."""


def byte_range(range_header: str | None, if_range: str | None, etag: str, n_bytes: int) -> ByteRange | None:
    """The one range to send, or None for the whole file.

    None also for several ranges, another unit, a malformed header or an If-Range that names another version:
    each may be answered with the whole. Raises UnsatisfiableRangeError for a range past the end.
    """
    if range_header is None or (if_range is not None and if_range.strip() != etag):
        return None
    match = _RANGE.fullmatch(range_header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        start, stop = max(n_bytes - int(last), 0), n_bytes
    else:
        start, stop = int(first), min(int(last) + 1, n_bytes) if last else n_bytes
        if last and int(last) < start:
            return None
    if start >= stop:
        raise UnsatisfiableRangeError(f"bytes {range_header} of {n_bytes}")
    return ByteRange(start, stop)


def _opaque(etag: str) -> str:
    return etag.removeprefix("W/")


DataFormat = Literal["jsonl", "parquet", "arrow", "openai"]
CHUNK_BYTES = 1024 * 1024
BATCH_ROWS = 1024
MEDIA_TYPES: dict[DataFormat, str] = {
    "jsonl": "application/jsonl",
    "openai": "application/jsonl",
    "parquet": "application/vnd.apache.parquet",
    "arrow": "application/vnd.apache.arrow.stream",
}
_SUFFIXES: dict[DataFormat, str] = {
    "jsonl": ".jsonl",
    "openai": ".openai.jsonl",
    "parquet": ".parquet",
    "arrow": ".arrows",
}


@dataclass(frozen=True)
class MixFile:
    """One mix of a tenant, ready to be read."""

    store: Store
    tenant: str
    manifest: Manifest

    @property
    def path(self) -> str:
        """The Parquet file in the store."""
        return f"{mix_path(self.tenant, self.manifest.mix_id)}/{MIX_FILE}"

    def etag(self, data_format: DataFormat) -> str:
        """The entity tag of a download.

        Of Parquet the file's SHA-256; of JSON Lines the manifest's `rows_sha256`, which is the SHA-256 of those
        very bytes. Arrow's bytes depend on the library's version, so that its tag is weak.
        """
        if data_format == "parquet":
            return strong_etag(self._receipt_sha256())
        rows = self.manifest.rows_sha256
        if data_format == "jsonl":
            return strong_etag(rows)
        return strong_etag(f"{rows}-openai-2") if data_format == "openai" else weak_etag(f"{rows}-arrow")

    def file_name(self, data_format: DataFormat) -> str:
        """The name that a download is saved under."""
        return f"mix-{self.manifest.mix_id}{_SUFFIXES[data_format]}"

    def chunks(self, data_format: Literal["jsonl", "arrow", "openai"]) -> Iterator[bytes]:
        """The whole mix in a format that is made while it is sent; memory is one batch of rows."""
        batches = mix_batches(self.store, self.tenant, self.manifest.mix_id, BATCH_ROWS)
        if data_format == "jsonl":
            return (json_lines(batch) for batch in batches)
        if data_format == "openai":
            return (message_lines(batch) for batch in batches)
        return _arrow_stream(batches)

    def open_stored(self) -> tuple[BinaryIO, int]:
        """The Parquet file opened, and its size; raises IntegrityError unless it has the size in the manifest."""
        file = self.store.open_file(self.path)
        n_bytes = file.seek(0, io.SEEK_END)
        expected = next(item.bytes for item in self.manifest.files if item.name == MIX_FILE)
        if n_bytes != expected:
            file.close()
            raise IntegrityError(f"{self.path} has {n_bytes} bytes, its manifest says {expected}")
        return file, n_bytes

    def page(self, after: int, limit: int) -> tuple[bytes, int | None]:
        """A JSON list of at most `limit` rows that follow position `after`, and where the next page starts.

        The second is None on the last page. Only the row groups concerned are read.
        """
        start = after + 1
        stop = min(start + limit, self.manifest.n_rows)
        if start >= stop:
            return b"[]", None
        with self.store.open_file(self.path) as file:
            rows = _row_slice(pq.ParquetFile(file), start, stop)
        lines = b",".join(line.rstrip(b"\n") for line in row_lines(rows))
        return b"[" + lines + b"]", stop - 1 if stop < self.manifest.n_rows else None

    def _receipt_sha256(self) -> str:
        return next(item.sha256 for item in self.manifest.files if item.name == MIX_FILE)


def stored_chunks(file: BinaryIO, part: ByteRange) -> Iterator[bytes]:
    """The bytes of a range, chunk by chunk; closes the file. Raises IntegrityError when it ends early."""
    with file:
        file.seek(part.start)
        left = len(part)
        while left:
            chunk = file.read(min(CHUNK_BYTES, left))
            if not chunk:
                raise IntegrityError("a stored file became shorter while it was sent")
            left -= len(chunk)
            yield chunk


def _row_slice(parquet: pq.ParquetFile, start: int, stop: int) -> pa.Table:
    """Rows `start` up to `stop` by place in the file, which is their position in the mix."""
    groups: list[int] = []
    first, offset = 0, 0
    for group in range(parquet.num_row_groups):
        n_rows = parquet.metadata.row_group(group).num_rows
        if offset < stop and offset + n_rows > start:
            first = offset if not groups else first
            groups.append(group)
        offset += n_rows
    return parquet.read_row_groups(groups).slice(start - first, stop - start)


def _arrow_stream(batches: Iterator[pa.RecordBatch]) -> Iterator[bytes]:
    sink = io.BytesIO()
    writer: pa.RecordBatchStreamWriter | None = None
    for batch in batches:
        writer = writer or pa.ipc.new_stream(sink, batch.schema)
        writer.write_batch(batch)
        yield _taken(sink)
    if writer is not None:
        writer.close()
        yield _taken(sink)


def _taken(sink: io.BytesIO) -> bytes:
    data = sink.getvalue()
    sink.seek(0)
    sink.truncate()
    return data


LEAST_BYTES = 4 * 2**20  # of the mix's Parquet: smaller mixes are made anew faster than they are found


@dataclass
class Renditions:
    """The copies of one process; `max_bytes` 0 keeps none."""

    max_bytes: int
    temp_dir: str | None
    _folder: Scratch | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def find(self, mix: MixFile, data_format: DataFormat) -> Path | None:
        """The copy of a download; None when there is none."""
        path = self._path(mix.tenant, mix.manifest.mix_id, mix.etag(data_format), data_format)
        if path is None or not path.exists():
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # the one used longest ago goes first
        return path

    def keeping(self, mix: MixFile, data_format: DataFormat, chunks: Iterator[bytes]) -> Iterator[bytes]:
        """The chunks as they are, a copy being made of them where that pays."""
        n_bytes = next(item.bytes for item in mix.manifest.files if item.name == MIX_FILE)
        if not LEAST_BYTES <= n_bytes <= self.max_bytes / 4:
            return chunks
        return self._copying(mix, data_format, chunks)

    def drop(self, tenant: str, mix_id: str) -> None:
        """Remove the copies of a mix."""
        if self._folder is not None:
            for path in self._folder.path.glob(f"{tenant}~{mix_id}~*"):
                path.unlink(missing_ok=True)

    def sweep(self, is_there: Any) -> None:
        """Remove the copies of mixes that are gone: `is_there(tenant, mix_id)` says whether one is there."""
        for path in self._copies():
            tenant, mix_id, *_ = path.name.split("~")
            if not is_there(tenant, mix_id):
                path.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove all."""
        if self._folder is not None:
            self._folder.close()
            self._folder = None

    def _copying(self, mix: MixFile, data_format: DataFormat, chunks: Iterator[bytes]) -> Iterator[bytes]:
        with self._lock:
            if self._folder is None:
                self._folder = Scratch("downloads", self.temp_dir)
        temporary = self._folder.path / f".tmp-{secrets.token_hex(8)}"
        digest = hashlib.sha256()
        try:
            with _Copy(temporary) as copy:
                for chunk in chunks:
                    copy.write(chunk)
                    if data_format == "jsonl":
                        digest.update(chunk)
                    yield chunk
            right = data_format != "jsonl" or digest.hexdigest() == mix.manifest.rows_sha256
            path = self._path(mix.tenant, mix.manifest.mix_id, mix.etag(data_format), data_format)
            if copy.whole and right and path is not None:
                temporary.replace(path)
                self._make_room(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _path(self, tenant: str, mix_id: str, etag: str, data_format: DataFormat) -> Path | None:
        if self._folder is None:
            return None
        tag = hashlib.sha256(etag.encode()).hexdigest()[:16]
        return self._folder.path / f"{tenant}~{mix_id}~{tag}~{data_format}"

    def _copies(self) -> list[Path]:
        if self._folder is None:
            return []
        return [path for path in self._folder.path.iterdir() if not path.name.startswith(".")]

    def _make_room(self, newest: Path) -> None:
        """Remove the copies used longest ago until the rest fits; the newest stays."""
        with contextlib.suppress(FileNotFoundError):
            found = sorted(((path.stat(), path) for path in self._copies()), key=lambda item: item[0].st_mtime)
            n_bytes = sum(stat.st_size for stat, _ in found)
            for stat, path in found:
                if n_bytes > self.max_bytes and path != newest:
                    path.unlink(missing_ok=True)
                    n_bytes -= stat.st_size


class _Copy:
    """A file that is written while that works: a full disk ends the copy and never the download."""

    def __init__(self, path: Path) -> None:
        self.whole = True
        self._file = None
        try:
            self._file = path.open("xb")
        except OSError:
            self.whole = False

    def __enter__(self) -> "_Copy":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            try:
                self._file.close()
            except OSError:
                self.whole = False

    def write(self, chunk: bytes) -> None:
        """Add a piece."""
        if self.whole and self._file is not None:
            try:
                self._file.write(chunk)
            except OSError:
                self.whole = False
