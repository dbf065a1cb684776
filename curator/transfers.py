"""Files on their way to and from the service: uploads that tell their progress, downloads checked by hash."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from curator.errors import IntegrityError
from curator.mixrows import MIX_FILE

DataFormat = Literal["jsonl", "parquet", "arrow", "openai"]
Document = dict[str, Any]
Advance = Callable[[int], None]


class ToldFile:
    """A file that tells what is read of it."""

    def __init__(self, file: BinaryIO, advance: Advance | None) -> None:
        self._file, self._advance = file, advance

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        data = self._file.read(size)
        if self._advance is not None:
            self._advance(len(data))
        return data

    def fileno(self) -> int:
        """The descriptor, from which the size is read."""
        return self._file.fileno()

    def seek(self, offset: int, whence: int = 0) -> int:
        """Move."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Where it stands."""
        return self._file.tell()

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.read(65_536), b"")


def verify_download(path: Path, data_format: DataFormat, manifest: Document) -> None:
    """Raise IntegrityError unless a downloaded file is what its manifest says."""
    if data_format == "parquet":
        expected = next(item["sha256"] for item in manifest["files"] if item["name"] == MIX_FILE)
        found = _file_sha256(path)
    elif data_format == "jsonl":
        expected, found = manifest["rows_sha256"], _file_sha256(path)
    elif data_format == "arrow":
        expected, found = manifest["rows_sha256"], _arrow_rows_sha256(path)
    else:
        expected, found = f"{manifest['n_rows']} rows", f"{_n_lines(path)} rows"
    if found != expected:
        raise IntegrityError(
            f"the {data_format} download of mix {manifest['mix_id']} is not what its manifest says: "
            f"expected {expected}, got {found}"
        )


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _n_lines(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _arrow_rows_sha256(path: Path) -> str:
    import pyarrow as pa

    from curator.rowlines import json_lines, rows_sha256

    try:
        with path.open("rb") as file, pa.ipc.open_stream(file) as batches:
            return rows_sha256(map(json_lines, batches))
    except (pa.ArrowInvalid, OSError):
        return "no whole Arrow stream"
