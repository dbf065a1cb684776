"""The upstream of the mode `forward`: another service of the same form, asked with the operator's key.

Each call is one attempt; when to try again is decided by `forward`. The key is read from a file when the service
starts; it is in no record, log or message: texts of the upstream are cleaned of it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self
from urllib.parse import quote

import httpx

from api.settings import Settings
from curator.client.transport import NOTHING_SENT
from curator.errors import BadInputError
from curator.store.retries import retry_after_s

TIMEOUT_S = 60.0
MAX_MESSAGE_CHARS = 500
MAX_PAGES = 20
PAGE_ITEMS = 100
_PASSING = frozenset({401, 403, 408, 409, 425, 429})  # a key may be mended by the operator
_NOT_DONE = frozenset({401, 403, 429})


class UpstreamRefusedError(Exception):
    """The upstream said no, and would say so again."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


class UpstreamDownError(Exception):
    """No answer that can be used, for now. `may_be_done`: what was asked may have been carried out all the same."""

    def __init__(self, reason: str, may_be_done: bool, after_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.may_be_done, self.after_s = reason, may_be_done, after_s


@dataclass(frozen=True)
class UpstreamClient:
    """Calls of one upstream."""

    http: httpx.Client
    key: str

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """The upstream of a service; None in other modes. Raises BadInputError when the key cannot be read."""
        if settings.openai_mode != "forward" or settings.openai_upstream is None or settings.openai_key_file is None:
            return None
        try:
            key = Path(settings.openai_key_file).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise BadInputError(f"openai_key_file {settings.openai_key_file} cannot be read as text") from error
        if not key or any(character.isspace() for character in key):
            raise BadInputError(f"openai_key_file {settings.openai_key_file} must hold one API key and nothing else")
        base_url = settings.openai_upstream.rstrip("/")
        http = httpx.Client(base_url=base_url, headers={"Authorization": f"Bearer {key}"}, timeout=TIMEOUT_S)
        return cls(http, key)

    def upload(self, file: BinaryIO, name: str) -> dict[str, Any]:
        """Send a training file; returns its description."""
        files = {"file": (name, file, "application/jsonl")}
        return self.call("POST", "/files", files=files, data={"purpose": "fine-tune"})

    def call(self, method: str, path: str, **options: Any) -> dict[str, Any]:
        """One request and the JSON object that answers it; raises UpstreamRefusedError or UpstreamDownError."""
        try:
            answer = self.http.request(method, path, **options)
        except httpx.TransportError as error:
            raise UpstreamDownError(type(error).__name__, not isinstance(error, NOTHING_SENT)) from error
        status = answer.status_code
        if status in _PASSING or status >= 500 or 300 <= status < 400:
            after_s = retry_after_s(answer.headers.get("retry-after")) or None
            raise UpstreamDownError(f"status {status}", status not in _NOT_DONE, after_s)
        try:
            document = answer.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise UpstreamDownError("an answer that is no JSON object", may_be_done=True)
        if status >= 400:
            error_body = document.get("error")
            raise self._refusal(status, error_body if isinstance(error_body, dict) else {})
        return document

    def items(self, path: str, **query: Any) -> Iterator[dict[str, Any]]:
        """The items of a list, page by page, as far as 2,000 of them."""
        params = {"limit": PAGE_ITEMS, **query}
        for _ in range(MAX_PAGES):
            page = self.call("GET", path, params=params)
            found = [item for item in page.get("data") or [] if isinstance(item, dict)]
            yield from found
            if not found or not page.get("has_more"):
                return
            params["after"] = found[-1].get("id")

    def clean(self, text: object) -> str:
        """A text of the upstream, to be shown: cut, and without the key."""
        return str(text).replace(self.key, "(key)")[:MAX_MESSAGE_CHARS]

    def _refusal(self, status: int, error: dict[str, Any]) -> UpstreamRefusedError:
        message = self.clean(error.get("message") or f"status {status}")
        return UpstreamRefusedError(status, self.clean(error.get("code") or "upstream_refused")[:64], message)


def quoted(name: str) -> str:
    """A name as one part of a path."""
    return quote(name, safe="")
