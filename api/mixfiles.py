"""A mix's stored rows as bytes to send: pages of rows, and whole downloads in four formats."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from api.conditional import ByteRange, strong_etag, weak_etag
from curator.errors import IntegrityError
from curator.manifest import Manifest
from curator.mixrows import MIX_FILE, mix_batches, mix_path
from curator.rowlines import json_lines, message_lines, row_lines
from curator.store import Store

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
        return strong_etag(f"{rows}-openai") if data_format == "openai" else weak_etag(f"{rows}-arrow")

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
