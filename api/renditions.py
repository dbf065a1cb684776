"""Downloads kept as files of this machine: what was made once of a large mix is sent as a file the next time.

A copy is made while its first download is sent, named only when it is whole, and removed with its mix, when the space
is needed, or with the process. Who may read it is decided before, by the mix's manifest.
"""

import contextlib
import hashlib
import os
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from api.mixfiles import DataFormat, MixFile
from curator.mixrows import MIX_FILE
from curator.scratch import Scratch

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
