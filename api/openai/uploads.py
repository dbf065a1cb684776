"""Uploads in parts as kept: `openai/<tenant>/uploads/<id>/upload.json`, beside the parts that have come.

A part's id follows from its bytes: one whose answer was lost finds itself when the client sends it again. An upload
expires after one hour; the file made from it stays.
"""

import re
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from api.openai.files import FOLDER, read_record
from curator.errors import IntegrityError, MissingError
from curator.mix.files import is_tenant, tenant_path
from curator.recipe.base import Strict
from curator.store.store import Store

RECORD_FILE = "upload.json"
UPLOAD_ID, PART_ID = re.compile(r"upload_[0-9a-f]{24}"), re.compile(r"part-[0-9a-f]{24}")
LIFE_S = 3_600.0


class UploadRecord(Strict):
    """One upload. Times are seconds since 1970; `n_bytes` is what all parts together are to have."""

    format_version: Literal[1] = 1
    id: str
    n_bytes: int
    created_s: float
    filename: str
    purpose: str
    expires_after: dict[str, str]
    status: Literal["pending", "completed", "cancelled"] = "pending"
    file_id: str | None = None

    @property
    def expires_s(self) -> float:
        """When it ends."""
        return self.created_s + LIFE_S

    def view(self, file: dict[str, Any] | None = None) -> dict[str, Any]:
        """The upload as clients see it, with the `file` that it gave."""
        shown: dict[str, Any] = {
            "id": self.id,
            "object": "upload",
            "bytes": self.n_bytes,
            "created_at": int(self.created_s),
            "expires_at": int(self.expires_s),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": self.status,
        }
        return shown if file is None else {**shown, "file": file}


@dataclass(frozen=True)
class Uploads:
    """The uploads in parts of one store."""

    store: Store

    def folder(self, tenant: str, upload_id: str) -> str:
        """An upload's folder; raises MissingError for what can be no id."""
        tenant_path(tenant)
        if not UPLOAD_ID.fullmatch(upload_id):
            raise MissingError(f"No such Upload object: {upload_id}")
        return f"{FOLDER}/{tenant}/uploads/{upload_id}"

    def add(self, tenant: str, record: UploadRecord) -> UploadRecord:
        """Keep a new upload under a new id."""
        made = record.model_copy(update={"id": f"upload_{secrets.token_hex(12)}"})
        self.write(tenant, made)
        return made

    def write(self, tenant: str, record: UploadRecord) -> None:
        """Keep an upload."""
        self.store.write_json(f"{self.folder(tenant, record.id)}/{RECORD_FILE}", record.model_dump(mode="json"))

    def read(self, tenant: str, upload_id: str) -> UploadRecord:
        """An upload that is not over its time; raises MissingError without one."""
        path, missing = f"{self.folder(tenant, upload_id)}/{RECORD_FILE}", f"No such Upload object: {upload_id}"
        record = read_record(self.store, path, UploadRecord, missing)
        if record.expires_s <= time.time():
            raise MissingError(missing)
        return record

    def ids(self, tenant: str) -> list[str]:
        """Ids of a tenant's uploads."""
        return [name for name in self.store.list(f"{FOLDER}/{tenant}/uploads") if UPLOAD_ID.fullmatch(name)]

    def parts(self, tenant: str, upload_id: str) -> dict[str, int]:
        """Bytes of each part that has come, by its id."""
        folder = self.folder(tenant, upload_id)
        return {name: self.store.n_bytes(f"{folder}/{name}") for name in self.store.list(folder, "part-*")}

    def add_part(self, tenant: str, upload_id: str, part_id: str, path: Path) -> None:
        """Keep a part."""
        with self.store.fill(f"{self.folder(tenant, upload_id)}/{part_id}") as target:
            shutil.copyfile(path, target)

    def join(self, tenant: str, upload_id: str, part_ids: Sequence[str], target: Path) -> None:
        """Write the parts, one after the other, into a file of this machine."""
        folder = self.folder(tenant, upload_id)
        with target.open("wb") as joined:
            for part_id in part_ids:
                with self.store.open_file(f"{folder}/{part_id}") as source:
                    shutil.copyfileobj(source, joined)

    def drop_parts(self, tenant: str, upload_id: str) -> None:
        """Remove the parts of an upload that has ended."""
        for name in self.parts(tenant, upload_id):
            self.store.delete(f"{self.folder(tenant, upload_id)}/{name}")

    def sweep(self) -> None:
        """Remove uploads over their time, and folders without a record that nobody touched for as long."""
        for tenant in filter(is_tenant, self.store.list(FOLDER)):
            for name in self.store.list(f"{FOLDER}/{tenant}/uploads"):
                folder = f"{FOLDER}/{tenant}/uploads/{name}"
                try:
                    self.read(tenant, name)
                except (MissingError, IntegrityError):
                    if self.store.exists(f"{folder}/{RECORD_FILE}") or self.store.age_s(folder) > LIFE_S:
                        self.store.delete(folder)
