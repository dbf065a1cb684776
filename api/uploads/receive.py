"""Receiving a request's body: multipart parts streamed to disk, or one bounded JSON document.

Memory stays flat whatever arrives: the `file` part goes to a temporary file as it comes, text parts have a small
bound, and a JSON body has one of its own.
"""

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from api.errors import ApiError
from api.service import Service
from api.settings import Settings
from api.uploads.bodies import bounded, check_encoding, drain, too_large
from api.uploads.multipart import FILE_PART, Parts
from curator.corpus.formats.json_decode import UndecodableError, decode
from curator.store.scratch import Scratch

DOCUMENTS = ("recipe", "audit", "check")  # what is asked of the rows: each route knows one
NO_FIELDS: Mapping[str, bool] = {}
_OTHER_KEYS = ("on_bad_rows", "layout")
REMEDY = "split the data set, or raise the bound"
JSON_REMEDY = "send larger data sets as multipart/form-data"
MAX_BODY_VALUES = 500_000  # texts, numbers, lists and objects of one JSON body, which become Python objects at once
UPLOAD_FILE = "upload"
FLUSH_BYTES = 1024 * 1024  # one hop to a thread per this many bytes
HELD_BYTES = 256 * 1024  # the last bytes of a file that wait in memory, with the request, for a place to be built in
_TEXT = {"type": "string"}
_CHOICE = {"on_bad_rows": {"type": "string", "enum": ["refuse", "drop"], "default": "refuse"}, "layout": _TEXT}
_NULL_LAYOUT = {"layout": {"type": ["string", "null"]}}  # JSON can say that the layout is to be found


def request_body(document: str, meaning: str, *, required: bool = True) -> dict[str, Any]:
    """The body of a route that takes rows and one `document`, for the OpenAPI document.

    `required` is what the route passes to `part_document`.
    """
    document_key = [document] if required else []
    return {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [FILE_PART, *document_key],
                    "properties": {
                        FILE_PART: {
                            "type": "string",
                            "format": "binary",
                            "description": "chat data, plain or .gz/.zst",
                        },
                        document: {"type": "string", "description": f"{meaning}, as JSON or YAML"},
                        "format": _TEXT,
                        **_CHOICE,
                    },
                }
            },
            "application/json": {
                "schema": {
                    "type": "object",
                    "required": ["rows", *document_key],
                    "additionalProperties": False,
                    "properties": {
                        "rows": {"type": "array", "items": {}},
                        document: {"type": "object"},
                        **_CHOICE,
                        **_NULL_LAYOUT,
                    },
                }
            },
        },
    }


@dataclass
class Upload:
    """What arrived: the data set as a file under its name as sent, or as decoded rows, and the other fields.

    `close` it in a thread. What its folder takes is made at its first use, so that a small request goes to a
    thread once: `folder` and `path` block.
    """

    temp_dir: str | None
    fields: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    rows: list[Any] | None = None
    n_bytes: int = 0  # of the data set as sent
    body_sha256: str | None = None  # of a JSON body
    _scratch: Scratch | None = None
    _unwritten: list[bytes] = field(default_factory=list)  # the last bytes of the file

    def fingerprint(self) -> str:
        """SHA-256 of everything that was asked, to tell a repeat from another request under the same key."""
        # json, not orjson: a field may hold an integer of any size, which is refused later and with its reason.
        asked = json.dumps({"fields": self.fields, "name": self.name}, sort_keys=True)
        digest = hashlib.sha256(asked.encode())
        if self.body_sha256 is not None:
            digest.update(self.body_sha256.encode())
        else:
            with self.path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @property
    def folder(self) -> Path:
        """The place for what is made of the data set; it goes when the request ends."""
        self._scratch = self._scratch or Scratch("upload", self.temp_dir)
        return self._scratch.path

    @property
    def path(self) -> Path:
        """The file, when it came as one."""
        path = self.folder / UPLOAD_FILE
        if self._unwritten:
            self.write(self._unwritten)
            self._unwritten = []
        return path

    def write(self, chunks: list[bytes]) -> None:
        """Append to the file; blocks."""
        with (self.folder / UPLOAD_FILE).open("ab") as file:
            file.writelines(chunks)

    def write_later(self, chunks: list[bytes]) -> None:
        """Keep the last bytes in memory; `path` writes them."""
        self._unwritten = [*chunks, b""]

    @property
    def has_folder(self) -> bool:
        """Whether there is something to close."""
        return self._scratch is not None

    def close(self) -> None:
        """Remove the folder; again it does nothing. Blocks."""
        if self._scratch is not None:
            self._scratch.close()
            self._scratch = None


@asynccontextmanager
async def received(
    request: Request,
    service: Service,
    tenant: str,
    document: str = "recipe",
    fields: Mapping[str, bool] | None = None,
    file_part: str = FILE_PART,
) -> AsyncIterator[Upload]:
    """The upload of a request, for the length of the block; its folder is removed at the end.

    `document` (one of DOCUMENTS) is what comes beside the rows, and `fields` what a form sends in its place (see
    `Parts.asked`); `file_part` is the part with the bytes. The tenant's place and quota of bytes are looked at before
    anything is read, and the bytes counted as they come: what is refused never lies on the disk first.

    Raises ApiError 400 for a malformed body, 413 for one over its bound or what the quota could ever give, 415 for
    another content type, 429 for now, 503 when too many wait.
    """
    settings, chunks = service.settings, request.stream()
    try:
        check_encoding(request)
        with service.upload_place(tenant):
            _check_size(request, service, tenant)
            upload = Upload(settings.temp_dir)
            try:
                counted = _counted(chunks, service, tenant)
                asked = {document: False} if fields is None else fields
                await _receive(request, counted, upload, settings, Parts(asked, file_part))
                yield upload
            finally:
                if upload.has_folder:
                    await run_in_threadpool(upload.close)
    except ApiError:
        await drain(request, chunks)
        raise


def _check_size(request: Request, service: Service, tenant: str) -> None:
    """Refuse a body by the size that it says it has, if it says one."""
    reported = request.headers.get("content-length", "")
    if reported.isdecimal():
        kind, _ = parse_options_header(request.headers.get("content-type"))
        settings = service.settings
        n_bytes, bound = (
            int(reported),
            settings.max_json_bytes if kind == b"application/json" else settings.max_upload_bytes,
        )
        if n_bytes > bound:
            raise too_large(bound, JSON_REMEDY if kind == b"application/json" else REMEDY)
        service.quotas.check_bytes(tenant, n_bytes)


async def _counted(chunks: AsyncIterator[bytes], service: Service, tenant: str) -> AsyncIterator[bytes]:
    """The chunks, each counted against the tenant's quota; raises ApiError 413 or 429 with the one that is too much."""
    n_before = 0
    async for chunk in chunks:
        service.quotas.count_bytes(tenant, len(chunk), n_before)
        n_before += len(chunk)
        yield chunk


async def _receive(
    request: Request, chunks: AsyncIterator[bytes], upload: Upload, settings: Settings, parts: Parts
) -> None:
    content_type, options = parse_options_header(request.headers.get("content-type"))
    if content_type == b"multipart/form-data":
        await _receive_multipart(chunks, options, upload, settings, parts)
        return
    document = next(iter(parts.asked), "")
    if content_type != b"application/json" or document not in DOCUMENTS:
        raise ApiError(
            415,
            "unsupported_content_type",
            f"send multipart/form-data (parts `file` and `{document}`) or "
            f'application/json ({{"rows": [...], "{document}": {{...}}}})',
        )
    body = bytearray()
    async for chunk in bounded(chunks, settings.max_json_bytes, JSON_REMEDY):
        body += chunk
    await run_in_threadpool(_decode, bytes(body), upload, document)


def _decode(body: bytes, upload: Upload, document: str) -> None:
    keys = ("rows", document, *_OTHER_KEYS)
    try:
        sent = decode(body, 0, max_values=MAX_BODY_VALUES)
    except UndecodableError as error:
        if error.problem.code == "record_too_large":
            message = f"the body has more than {MAX_BODY_VALUES:,} values: {JSON_REMEDY}"
            raise ApiError(413, "too_large", message) from error
        raise ApiError(400, "malformed_json", f"the body is not JSON: {error.problem.message}") from error
    if not isinstance(sent, dict) or not isinstance(sent.get("rows"), list):
        raise ApiError(422, "missing_part", f'the body must be an object with "rows" (a list) and "{document}"')
    unknown = sorted(sent.keys() - set(keys))
    if unknown:
        raise ApiError(422, "unknown_part", f"unknown key {unknown[0]!r}; there are: {', '.join(keys)}")
    upload.rows, upload.fields, upload.n_bytes = sent.pop("rows"), sent, len(body)
    upload.body_sha256 = hashlib.sha256(body).hexdigest()


async def _receive_multipart(
    chunks: AsyncIterator[bytes],
    options: dict[bytes, bytes],
    upload: Upload,
    settings: Settings,
    parts: Parts,
) -> None:
    try:
        parser = MultipartParser(options.get(b"boundary", b""), parts.callbacks())  # type: ignore[arg-type]
        async for chunk in bounded(chunks, settings.max_upload_bytes, REMEDY):
            parser.write(chunk)
            if parts.n_buffered >= FLUSH_BYTES:
                await run_in_threadpool(upload.write, parts.taken())
    except FormParserError as error:
        raise ApiError(400, "malformed_multipart", "the body is not well-formed multipart/form-data") from error
    if not parts.ended:
        raise ApiError(400, "malformed_multipart", "the body ends before its closing boundary")
    if parts.file_name is None:
        raise ApiError(422, "missing_part", f"the part `{parts.file_part}` with the bytes is missing")
    if parts.n_buffered > HELD_BYTES:
        await run_in_threadpool(upload.write, parts.taken())
    upload.write_later(parts.taken())
    upload.fields, upload.name, upload.n_bytes = dict(parts.texts), parts.file_name, parts.n_bytes
