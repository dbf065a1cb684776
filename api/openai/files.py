"""Files of a tenant: training data as sent, and what jobs and refusals gave.

A file's id follows from its bytes, name, purpose and time to live: an upload whose answer was lost finds its file when
the client repeats it. Records lie in `openai/<tenant>/files/<id>/file.json`, beside the bytes and the checked rows. A
result of a job holds no bytes: it is a view of the job's mix.
"""

import hashlib
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import orjson
from pydantic import BaseModel, ValidationError

from curator.corpus.task_set import TaskSet
from curator.errors import IntegrityError, MissingError
from curator.mix.files import is_tenant, tenant_path
from curator.recipe.base import Strict
from curator.store.scratch import Scratch
from curator.store.store import Store

FOLDER = "openai"
RECORD_FILE, CONTENT_FILE, ROWS_FILE = "file.json", "content", "rows.parquet"
FILE_ID = re.compile(r"file-[0-9a-f]{24}")
Purpose = Literal["fine-tune", "fine-tune-results"]
ResultPart = Literal["openai", "jsonl", "manifest"]
M = TypeVar("M", bound=BaseModel)


class FileRecord(Strict):
    """One file. Times are seconds since 1970. `task` describes the rows of training data; `mix_id` and `part` say which
    view of which mix a result is."""

    format_version: Literal[1] = 1
    file_id: str
    n_bytes: int
    created_s: float
    filename: str
    purpose: Purpose
    expires_s: float | None = None
    task: dict[str, Any] | None = None
    mix_id: str | None = None
    part: ResultPart | None = None

    def view(self) -> dict[str, Any]:
        """The file as clients see it."""
        shown: dict[str, Any] = {
            "id": self.file_id,
            "object": "file",
            "bytes": self.n_bytes,
            "created_at": int(self.created_s),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }
        return shown if self.expires_s is None else {**shown, "expires_at": int(self.expires_s)}


def content_id(prefix: str, document: object) -> str:
    """An id that follows from a document; the same document gives the same one."""
    digest = hashlib.sha256(orjson.dumps(document, option=orjson.OPT_SORT_KEYS)).hexdigest()
    return f"{prefix}-{digest[:24]}"


def read_record(store: Store, path: str, kind: type[M], missing: str) -> M:
    """A record as kept; raises MissingError with the text `missing`, IntegrityError for a damaged one."""
    try:
        return kind.model_validate(store.read_json(path))
    except MissingError as error:
        raise MissingError(missing) from error
    except ValidationError as error:
        raise IntegrityError(f"{path} is not a record of this version") from error


@dataclass(frozen=True)
class Files:
    """The files of one store."""

    store: Store

    def folder(self, tenant: str, file_id: str) -> str:
        """A file's folder; raises MissingError for what can be no id."""
        tenant_path(tenant)
        if not FILE_ID.fullmatch(file_id):
            raise MissingError(f"No such File object: {file_id}")
        return f"{FOLDER}/{tenant}/files/{file_id}"

    def read(self, tenant: str, file_id: str) -> FileRecord:
        """A file that is not over its time; raises MissingError without one."""
        path, missing = f"{self.folder(tenant, file_id)}/{RECORD_FILE}", f"No such File object: {file_id}"
        record = read_record(self.store, path, FileRecord, missing)
        if record.expires_s is not None and record.expires_s <= time.time():
            raise MissingError(missing)
        return record

    def add(
        self, tenant: str, record: FileRecord, content: Path | bytes | None = None, rows: Path | None = None
    ) -> None:
        """Keep a file, its record last."""
        folder = self.folder(tenant, record.file_id)
        if isinstance(content, bytes):
            self.store.write_bytes(f"{folder}/{CONTENT_FILE}", content)
        for name, source in ((CONTENT_FILE, content), (ROWS_FILE, rows)):
            if isinstance(source, Path):
                self.store.put_file(f"{folder}/{name}", source)  # a job may hold the rows of an equal upload
        self.store.write_json(f"{folder}/{RECORD_FILE}", record.model_dump(mode="json"))

    def all(self, tenant: str) -> list[FileRecord]:
        """A tenant's files, oldest first; what was removed meanwhile or is damaged is left out."""
        found = []
        for name in self.store.list(f"{FOLDER}/{tenant}/files"):
            try:
                found.append(self.read(tenant, name))
            except (MissingError, IntegrityError):
                continue
        return sorted(found, key=lambda record: (record.created_s, record.file_id))

    def remove(self, tenant: str, file_id: str) -> None:
        """Remove a file; its record goes first. Nothing there is no error."""
        folder = self.folder(tenant, file_id)
        self.store.delete(f"{folder}/{RECORD_FILE}")
        self.store.delete(folder)

    @contextmanager
    def task_set(self, tenant: str, record: FileRecord) -> Iterator[TaskSet]:
        """The checked rows of training data, as a file of this machine for the length of the block."""
        assert record.task is not None
        path = f"{self.folder(tenant, record.file_id)}/{ROWS_FILE}"
        local = self.store.local_path(path)
        if local is not None:
            yield TaskSet(path=local, rejects=(), **record.task)
            return
        with Scratch("job") as folder:
            with self.store.open_file(path) as source, (folder / ROWS_FILE).open("wb") as target:
                shutil.copyfileobj(source, target)
            yield TaskSet(path=folder / ROWS_FILE, rejects=(), **record.task)

    def sweep(self, grace_s: float) -> None:
        """Remove files over their time, and folders without a record that were not touched for `grace_s` seconds."""
        for tenant in filter(is_tenant, self.store.list(FOLDER)):
            for name in self.store.list(f"{FOLDER}/{tenant}/files"):
                try:
                    self.read(tenant, name)
                except MissingError:
                    self._sweep_one(f"{FOLDER}/{tenant}/files/{name}", grace_s)
                except IntegrityError:
                    continue

    def _sweep_one(self, folder: str, grace_s: float) -> None:
        is_expired = self.store.exists(f"{folder}/{RECORD_FILE}")
        if is_expired or self.store.age_s(folder) > grace_s:
            self.store.delete(f"{folder}/{RECORD_FILE}")
            self.store.delete(folder)
