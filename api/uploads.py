"""Receiving a request's body: multipart parts streamed to disk, or one bounded JSON document.

Memory stays flat whatever arrives: the `file` part goes to a temporary file as it comes, text parts have a small
bound, and a JSON body has one of its own.
"""

import hashlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from anyio import move_on_after
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from api.errors import ApiError
from api.parts import FILE_PART, Parts
from api.settings import Settings
from curator.formats.decode import UndecodableError, decode

JSON_KEYS = ("rows", "recipe", "on_bad_rows", "layout")
FLUSH_BYTES = 1024 * 1024  # one hop to a thread per this many bytes
DRAIN_S = 10.0
_TEXT = {"type": "string"}
_CHOICE = {"on_bad_rows": {"type": "string", "enum": ["refuse", "drop"], "default": "refuse"}, "layout": _TEXT}
# The body of POST /v1/mixes for the OpenAPI document.
REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": [FILE_PART, "recipe"],
                "properties": {
                    FILE_PART: {"type": "string", "format": "binary", "description": "chat data, plain or .gz/.zst"},
                    "recipe": {"type": "string", "description": "the recipe as JSON or YAML"},
                    "format": _TEXT,
                    **_CHOICE,
                },
            }
        },
        "application/json": {
            "schema": {
                "type": "object",
                "required": ["rows", "recipe"],
                "additionalProperties": False,
                "properties": {"rows": {"type": "array", "items": {}}, "recipe": {"type": "object"}, **_CHOICE},
            }
        },
    },
}


@dataclass
class Upload:
    """What arrived: the data set as a file under its name as sent, or as decoded rows, and the other fields.

    `folder` is the place for what is made of it; it goes when the request ends.
    """

    folder: Path
    fields: dict[str, Any]
    name: str = ""
    rows: list[Any] | None = None
    n_bytes: int = 0  # of the data set as sent
    body_sha256: str | None = None  # of a JSON body

    def fingerprint(self) -> str:
        """SHA-256 of everything that was asked, to tell a repeat from another request under the same key."""
        digest = hashlib.sha256(orjson.dumps({"fields": self.fields, "name": self.name}, option=orjson.OPT_SORT_KEYS))
        if self.body_sha256 is not None:
            digest.update(self.body_sha256.encode())
        else:
            with self.path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    @property
    def path(self) -> Path:
        """The file, when it came as one."""
        return self.folder / "upload"


@asynccontextmanager
async def received(request: Request, settings: Settings) -> AsyncIterator[Upload]:
    """The upload of a request, for the length of the block; its folder is removed at the end.

    Raises ApiError 400 for a malformed body, 413 for one over its bound, 415 for another content type.
    """
    chunks = request.stream()
    folder = await run_in_threadpool(_new_folder, settings)
    try:
        yield await _receive(request, chunks, Path(folder.name), settings)
    except ApiError:
        await _drain(chunks)
        raise
    finally:
        await run_in_threadpool(folder.cleanup)


async def _receive(request: Request, chunks: AsyncIterator[bytes], folder: Path, settings: Settings) -> Upload:
    content_type, options = parse_options_header(request.headers.get("content-type"))
    if content_type == b"multipart/form-data":
        return await _receive_multipart(chunks, options, folder, settings)
    if content_type == b"application/json":
        return await _receive_json(chunks, folder, settings)
    raise ApiError(
        415,
        "unsupported_content_type",
        'send multipart/form-data (parts `file` and `recipe`) or application/json ({"rows": [...], "recipe": {...}})',
    )


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Read and throw away what the client is still sending, for a while.

    It would otherwise meet a closed connection instead of the answer.
    """
    with move_on_after(DRAIN_S):
        async for _ in chunks:
            pass


def _new_folder(settings: Settings) -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory(prefix="ballast-upload-", dir=settings.temp_dir, ignore_cleanup_errors=True)


async def _receive_json(chunks: AsyncIterator[bytes], folder: Path, settings: Settings) -> Upload:
    body = bytearray()
    async for chunk in _bounded(chunks, settings.max_json_bytes, "send larger data sets as multipart/form-data"):
        body += chunk
    return await run_in_threadpool(_decoded, bytes(body), folder)


def _decoded(body: bytes, folder: Path) -> Upload:
    try:
        document = decode(body, 0)
    except UndecodableError as error:
        raise ApiError(400, "malformed_json", f"the body is not JSON: {error.problem.message}") from error
    if not isinstance(document, dict) or not isinstance(document.get("rows"), list):
        raise ApiError(422, "missing_part", 'the body must be an object with "rows" (a list) and "recipe"')
    unknown = sorted(document.keys() - set(JSON_KEYS))
    if unknown:
        raise ApiError(422, "unknown_part", f"unknown key {unknown[0]!r}; there are: {', '.join(JSON_KEYS)}")
    digest = hashlib.sha256(body).hexdigest()
    return Upload(folder, document, rows=document.pop("rows"), n_bytes=len(body), body_sha256=digest)


async def _receive_multipart(
    chunks: AsyncIterator[bytes], options: dict[bytes, bytes], folder: Path, settings: Settings
) -> Upload:
    parts = Parts(Upload(folder, {}).path)
    try:
        parser = MultipartParser(options.get(b"boundary", b""), parts.callbacks())  # type: ignore[arg-type]
        async for chunk in _bounded(chunks, settings.max_upload_bytes, "split the data set, or raise the bound"):
            parser.write(chunk)
            if parts.n_buffered >= FLUSH_BYTES:
                await run_in_threadpool(parts.flush)
    except FormParserError as error:
        raise ApiError(400, "malformed_multipart", "the body is not well-formed multipart/form-data") from error
    if not parts.ended:
        raise ApiError(400, "malformed_multipart", "the body ends before its closing boundary")
    await run_in_threadpool(parts.flush)
    if parts.file_name is None:
        raise ApiError(422, "missing_part", f"the part `{FILE_PART}` with the data set is missing")
    return Upload(folder, dict(parts.texts), name=parts.file_name, n_bytes=parts.n_bytes)


async def _bounded(chunks: AsyncIterator[bytes], max_bytes: int, remedy: str) -> AsyncIterator[bytes]:
    """The body's chunks; raises ApiError 413 beyond `max_bytes`."""
    n_bytes = 0
    async for chunk in chunks:
        n_bytes += len(chunk)
        if n_bytes > max_bytes:
            raise ApiError(413, "too_large", f"the body is over the bound of {max_bytes} bytes: {remedy}")
        yield chunk
