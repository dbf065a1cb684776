"""A mix's rows as bytes to send: pages of rows, whole downloads in four formats, and their entity tags.

A download of few bytes is made and sent from memory. Otherwise Parquet is the stored file, and JSON Lines and the
OpenAI form become files too. The first request for one renders it into the mix's folder, where later requests find it
and from where it goes when the mix does; the JSON Lines of a large mix are written there while it is built
(`build_lasting`). The manifest does not list these files. Arrow is made while it is sent,
because its bytes depend on the library's version; so is every made format of a store in a bucket.
"""

import hashlib
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from curator.errors import IntegrityError, MissingError
from curator.mix.build import hidden_folder
from curator.mix.files import (
    LINES_FILE,
    MANIFEST_FILE,
    MIX_FILE,
    DataFormat,
    json_lines,
    message_lines,
    mix_batches,
    mix_path,
    row_lines,
)
from curator.mix.identity import Manifest
from curator.mix.manifest import FileReceipt
from curator.store.filesystem import reading_parquet
from curator.store.store import Store

StoredFormat = Literal["jsonl", "parquet", "openai"]  # what can lie in the store as a file
CHUNK_BYTES = 1024 * 1024
BATCH_ROWS = 1024
PAGE_BATCH_ROWS = 256
HELD_BYTES = 2 << 20  # of a download that is sent from memory, and of the columns that it is made of
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
_FILES: dict[StoredFormat, str] = {"jsonl": LINES_FILE, "openai": "mix.openai.jsonl", "parquet": MIX_FILE}
_ETAG = re.compile(r'(?:W/)?"[^"]*"')


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


def _opaque(etag: str) -> str:
    return etag.removeprefix("W/")


@dataclass(frozen=True)
class Held:
    """A whole download in memory, and when the mix was written (UTC)."""

    content: bytes
    modified: datetime


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

    @property
    def n_parquet_bytes(self) -> int:
        """Size of the Parquet file, by the manifest."""
        return self._receipt.bytes

    def etag(self, data_format: DataFormat) -> str:
        """The entity tag of a download.

        Of Parquet the file's SHA-256; of JSON Lines the manifest's `rows_sha256`, which is the SHA-256 of those
        very bytes. Arrow's bytes depend on the library's version, so that its tag is weak.
        """
        if data_format == "parquet":
            return strong_etag(self._receipt.sha256)
        rows = self.manifest.rows_sha256
        if data_format == "jsonl":
            return strong_etag(rows)
        return strong_etag(f"{rows}-openai-2") if data_format == "openai" else weak_etag(f"{rows}-arrow")

    def file_name(self, data_format: DataFormat) -> str:
        """The name that a download is saved under."""
        return f"mix-{self.manifest.mix_id}{_SUFFIXES[data_format]}"

    def chunks(self, data_format: DataFormat) -> Iterator[bytes]:
        """The whole mix in a format, to be sent as it is read; memory is one batch of rows.

        Of Parquet raises MissingError or IntegrityError, at once, unless the file has the size in the manifest.
        """
        if data_format == "parquet":
            return self._parquet_chunks()
        batches = mix_batches(self.store, self.tenant, self.manifest.mix_id, BATCH_ROWS)
        if data_format == "arrow":
            return _arrow_stream(batches)
        return map(json_lines if data_format == "jsonl" else message_lines, batches)

    def stored(self, data_format: StoredFormat) -> Path | None:
        """The download as a file of this machine, if it is there; None otherwise, and for a store in a bucket.

        Raises IntegrityError when the Parquet file has another size than the manifest says.
        """
        path = self.store.local_path(self._file_path(data_format))
        if path is None or not path.exists():
            return None
        if data_format == "parquet":
            self._check_size(path.stat().st_size)
        return path

    def held(self, data_format: StoredFormat) -> Held | None:
        """The whole download where it has few bytes, None otherwise and for a store in a bucket.

        A text format is made anew: that takes less than to write its file. Raises MissingError when the mix is deleted
        meanwhile, IntegrityError when the rows are not those of the manifest.
        """
        if self.n_parquet_bytes > HELD_BYTES or self.store.local_path("") is None:
            return None
        if data_format == "parquet":
            content = self.store.read_bytes(self.path)
            self._check_size(len(content))
            return Held(content, self.store.modified(self.path))
        with reading_parquet(self.path, self.store.base), self.store.open_file(self.path) as file:
            parquet = pq.ParquetFile(file)
            groups = range(parquet.num_row_groups)
            if sum(parquet.metadata.row_group(group).total_byte_size for group in groups) > HELD_BYTES:
                return None
            rows = parquet.read(use_threads=False).combine_chunks().to_batches()
        content = b"".join(map(json_lines if data_format == "jsonl" else message_lines, rows))
        if data_format == "jsonl" and hashlib.sha256(content).hexdigest() != self.manifest.rows_sha256:
            raise self._other_rows()
        return Held(content, self.store.modified(self.path))

    def render(self, data_format: Literal["jsonl", "openai"]) -> Path:
        """Write a text format into the mix's folder in one step, and return the file; for a local store.

        Raises MissingError when the mix is deleted meanwhile, IntegrityError when the rows are not those of the
        manifest, and StoreError when the file cannot be written.
        """
        path = self.store.local_path(self._file_path(data_format))
        assert path is not None
        digest = hashlib.sha256()
        try:
            with hidden_folder(self.store, self.tenant) as temporary:
                with self.store.fill(f"{temporary}/{path.name}") as written, written.open("wb") as file:
                    for chunk in self.chunks(data_format):
                        file.write(chunk)
                        if data_format == "jsonl":
                            digest.update(chunk)
                if data_format == "jsonl" and digest.hexdigest() != self.manifest.rows_sha256:
                    raise self._other_rows()
                written.replace(path)
        except FileNotFoundError as error:
            raise MissingError("the mix was deleted") from error
        folder = mix_path(self.tenant, self.manifest.mix_id)
        if not self.store.exists(f"{folder}/{MANIFEST_FILE}"):  # deleted in this moment: leave no rows behind
            self.store.delete(folder)
            raise MissingError("the mix was deleted")
        return path

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

    def _parquet_chunks(self) -> Iterator[bytes]:
        file = self.store.open_file(self.path)
        try:
            self._check_size(file.seek(0, io.SEEK_END))
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return _chunks(file)

    def _other_rows(self) -> IntegrityError:
        return IntegrityError(f"the rows of {self.path} are not those of its manifest")

    def _check_size(self, n_bytes: int) -> None:
        if n_bytes != self.n_parquet_bytes:
            raise IntegrityError(f"{self.path} has {n_bytes} bytes, its manifest says {self.n_parquet_bytes}")

    @property
    def _receipt(self) -> FileReceipt:
        return next(item for item in self.manifest.files if item.name == MIX_FILE)

    def _file_path(self, data_format: StoredFormat) -> str:
        folder = mix_path(self.tenant, self.manifest.mix_id)
        return f"{folder}/{_FILES[data_format]}"


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    with file:
        while chunk := file.read(CHUNK_BYTES):
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
    batches, at = list[pa.RecordBatch](), first
    for batch in parquet.iter_batches(PAGE_BATCH_ROWS, row_groups=groups, use_threads=False):
        begin, end = max(start - at, 0), min(stop - at, len(batch))
        if begin < end:
            batches.append(batch.slice(begin, end - begin))
        at += len(batch)
        if at >= stop:  # what follows in the group is not decoded
            break
    return pa.Table.from_batches(batches, parquet.schema_arrow)


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
