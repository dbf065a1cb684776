"""One service over HTTP: requests that are tried again, pages, and answers as documents or as our errors."""

from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, BinaryIO, Self
from urllib.parse import quote

import httpx
import orjson

from curator.errors import BadInputError, RemoteError
from curator.store.retries import Retries, TryAgainError, retry_after_s

Document = dict[str, Any]
Advance = Callable[[int], None]
RETRIED_STATUSES = frozenset({429, 502, 503, 504})
PASSED_ON_STATUSES = frozenset({502, 504})  # of a proxy: what it asked the service may have been done
NOTHING_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
FIRST_WAIT_S = 0.25
MAX_WAIT_S = 8.0


class ServiceError(RemoteError):
    """The service's own refusal: HTTP `status`, `code` and `details` as in its error body."""

    def __init__(self, status: int, code: str, message: str, details: Sequence[object] = ()) -> None:
        super().__init__(message, details=details)
        self.status = status
        self.code = code


class ProgressFile:
    """A file to send that reports how many bytes were read of it."""

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


class Remote:
    """One service. Use it as a context manager, or call `close`.

    `timeout_s` bounds each wait for the service, not a whole transfer; `retries` counts attempts after the first.
    """

    def __init__(self, url: str, api_key: str | None = None, timeout_s: float = 60.0, *, retries: int = 4) -> None:
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        try:
            self._http = httpx.Client(
                base_url=url.rstrip("/"), headers=headers, timeout=httpx.Timeout(timeout_s, connect=5.0)
            )
        except (httpx.InvalidURL, ValueError) as error:
            raise BadInputError(f"{url!r} is not an address of a service") from error
        if self._http.base_url.scheme not in ("http", "https"):
            self._http.close()
            raise BadInputError(f"{url!r} is not an address of a service: it begins with http:// or https://")
        self._retries = Retries(retries + 1, FIRST_WAIT_S, MAX_WAIT_S)
        self._patience_s = timeout_s / 2  # a request that asks the service to wait must not outlast its own timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _items(self, path: str, key: str, page_size: int, **query: str) -> Iterator[Document]:
        params: dict[str, Any] = {"limit": page_size, **query}
        while True:
            page = self._json("GET", path, params=params)
            yield from page[key]
            if page["next_after"] is None:
                return
            params["after"] = page["next_after"]

    def _json(self, method: str, path: str, **options: Any) -> Document:
        return document_of(self._attempt(lambda: self._http.request(method, path, **options)))

    def _delete(self, path: str, *, is_gone: bool) -> None:
        """DELETE, tried again; where `is_gone`, a 404 after an attempt whose answer was lost is the success it meant.

        Otherwise a second DELETE would mean something else than the first: after a lost answer RemoteError is raised.
        """
        n_lost = 0

        def attempt() -> httpx.Response:
            nonlocal n_lost
            try:
                response = self._http.delete(path)
            except NOTHING_SENT:
                raise
            except httpx.TransportError as error:
                n_lost += 1
                if not is_gone:
                    raise self._lost(path, str(error) or type(error).__name__) from error
                raise
            if response.status_code in PASSED_ON_STATUSES:
                n_lost += 1
                if not is_gone:
                    raise self._lost(path, f"status {response.status_code} of something between")
            if response.status_code == 404 and n_lost:
                return httpx.Response(204, request=response.request)
            return response

        self._attempt(attempt)

    def _lost(self, path: str, reason: str) -> RemoteError:
        return RemoteError(f"the answer to DELETE {path} was lost ({reason}): look whether it was carried out")

    def _attempt(self, call: Callable[[], httpx.Response]) -> httpx.Response:
        """The first good answer; raises ServiceError on a refusal, RemoteError when nobody answers."""

        def attempt() -> httpx.Response:
            try:
                response = call()
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
                raise TryAgainError(RemoteError(f"no answer from {self._http.base_url}: {reason}")) from error
            if response.is_success:
                return response
            if response.status_code in RETRIED_STATUSES:
                raise TryAgainError(_refusal(response), retry_after_s(response.headers.get("retry-after")) or None)
            raise _refusal(response)

        return self._retries.run(attempt)


def path_part(name: str) -> str:
    """A name as one part of a path, whatever it holds."""
    return quote(name, safe="")


def document_of(response: httpx.Response) -> Document:
    """The JSON object of an answer; raises RemoteError for anything else."""
    try:
        document = orjson.loads(response.content)
    except orjson.JSONDecodeError as error:
        raise RemoteError(f"{response.url} answered with something else than JSON: is it this service?") from error
    if not isinstance(document, dict):
        raise RemoteError(f"{response.url} answered with something else than a JSON object")
    return document


def _refusal(response: httpx.Response) -> ServiceError:
    try:
        error = orjson.loads(response.content)["error"]
        return ServiceError(response.status_code, error["code"], error["message"], error["details"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return ServiceError(
            response.status_code,
            "not_this_service",
            f"{response.url} answered {response.status_code} in no known shape",
        )
