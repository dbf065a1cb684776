"""Client of the HTTP service: `with Client(url) as client: client.create_mix("task.jsonl", {"corpus": "chats"})`.

Every call raises RemoteError when the service answers with an error or not at all. Calls that may be repeated
without harm (all of them: a mix's id follows from what is asked) are tried again on a lost connection, 429, 502,
503 and 504. A download is verified against the manifest before it gets its name.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

import httpx
import orjson

from curator.errors import BadInputError, MissingError, RemoteError
from curator.transfers import Advance, DataFormat, Document, ToldFile, verify_download

__all__ = ["DATA_FORMATS", "RETRIED_STATUSES", "Advance", "Client", "DataFormat", "Document", "ServiceError"]

DATA_FORMATS: tuple[DataFormat, ...] = ("jsonl", "parquet", "arrow", "openai")
RETRIED_STATUSES = frozenset({429, 502, 503, 504})
FIRST_WAIT_S = 0.25
MAX_WAIT_S = 8.0
PAGE_ROWS = 500


class ServiceError(RemoteError):
    """The service's own refusal: HTTP `status`, `code` and `details` as in its error body."""

    def __init__(self, status: int, code: str, message: str, details: Sequence[object] = ()) -> None:
        super().__init__(message, details=details)
        self.status = status
        self.code = code


class Client:
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
            raise BadInputError(f"{url!r} is no address of a service") from error
        if self._http.base_url.scheme not in ("http", "https"):
            self._http.close()
            raise BadInputError(f"{url!r} is no address of a service: it begins with http:// or https://")
        self._retries = retries

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def create_mix(
        self,
        data: str | Path | Sequence[Mapping[str, Any]],
        recipe: Mapping[str, Any],
        *,
        on_bad_rows: Literal["refuse", "drop"] = "refuse",
        idempotency_key: str | None = None,
        advance: Advance | None = None,
    ) -> Document:
        """Send a file or rows with a recipe: `mix_id`, `created`, `manifest`, `dropped`, `links`.

        A file is streamed, and `advance` told each piece's bytes; under an `idempotency_key` the same request gets
        the first answer again. Building may take long: there is no bound on the wait for the answer. Raises
        ServiceError with code `bad_rows` and every bad row in `details`, `bad_recipe` and the like.
        """
        headers = {"Idempotency-Key": idempotency_key} if idempotency_key else {}
        return self._send("/v1/mixes", data, recipe, on_bad_rows, headers, advance)

    def preview_mix(
        self,
        data: str | Path | Sequence[Mapping[str, Any]],
        recipe: Mapping[str, Any],
        *,
        on_bad_rows: Literal["refuse", "drop"] = "refuse",
    ) -> Document:
        """What `create_mix` would give, without storing it: `manifest`, `dropped`, `cost`."""
        return self._send("/v1/mixes/preview", data, recipe, on_bad_rows, {}, None)

    def _send(
        self,
        link: str,
        data: str | Path | Sequence[Mapping[str, Any]],
        recipe: Mapping[str, Any],
        on_bad_rows: str,
        headers: dict[str, str],
        advance: Advance | None,
    ) -> Document:
        timeout = httpx.Timeout(self._http.timeout.write, connect=5.0, read=None)
        if not isinstance(data, str | Path):
            body = {"rows": [dict(row) for row in data], "recipe": dict(recipe), "on_bad_rows": on_bad_rows}
            content, headers = orjson.dumps(body), {**headers, "Content-Type": "application/json"}
            return self._json("POST", link, content=content, headers=headers, timeout=timeout)
        path = Path(data)
        if not path.is_file():
            raise MissingError(f"there is no file {path}")
        fields = {"recipe": orjson.dumps(dict(recipe)).decode(), "on_bad_rows": on_bad_rows}

        def attempt() -> httpx.Response:
            with path.open("rb") as file:  # opened anew for each attempt
                told = ToldFile(file, advance)
                files = {"file": (path.name, told)}
                return self._http.post(link, data=fields, files=files, headers=headers, timeout=timeout)  # type: ignore[arg-type]

        return _document(self._attempt(attempt))

    def manifest(self, mix_id: str) -> Document:
        """A mix's manifest."""
        return self._json("GET", f"/v1/mixes/{_part(mix_id)}")

    def list_mixes(self) -> Iterator[Document]:
        """Every mix in order of ids, fetched page by page."""
        return self._items("/v1/mixes", "mixes", PAGE_ROWS)

    def iter_rows(self, mix_id: str, *, page_rows: int = PAGE_ROWS) -> Iterator[Document]:
        """The rows of a mix in training order with their lineage, fetched page by page."""
        return self._items(f"/v1/mixes/{_part(mix_id)}/rows", "rows", page_rows)

    def delete_mix(self, mix_id: str) -> None:
        """Remove a mix."""
        self._attempt(lambda: self._http.delete(f"/v1/mixes/{_part(mix_id)}"))

    def corpora(self) -> list[Document]:
        """The corpora that recipes may name."""
        found: list[Document] = self._json("GET", "/v1/corpora")["corpora"]
        return found

    def corpus(self, name: str) -> Document:
        """One corpus with its scorers."""
        return self._json("GET", f"/v1/corpora/{_part(name)}")

    def gap(self, name: str, **params: Any) -> Document:
        """Quantiles and histogram of a corpus's gap; `params`: score, eps, hold_out, bins."""
        return self._json("GET", f"/v1/corpora/{_part(name)}/gap", params=params)

    def sql(self, statement: str, *, max_rows: int | None = None) -> Document:
        """One read-only SELECT over the scored corpora: `columns`, `rows`, `n_rows`, `truncated`."""
        body = {"statement": statement, "max_rows": max_rows}
        return self._json("POST", "/v1/sql", json=body)

    def sql_bytes(self, statement: str, format: Literal["csv", "arrow", "parquet"]) -> bytes:  # noqa: A002
        """The same answer as a file's bytes."""
        body = {"statement": statement, "format": format}
        return self._attempt(lambda: self._http.post("/v1/sql", json=body)).content

    def queries(self) -> list[Document]:
        """The named queries with their parameters."""
        found: list[Document] = self._json("GET", "/v1/queries")["queries"]
        return found

    def query(self, name: str, *, max_rows: int | None = None, **params: Any) -> Document:
        """One named query's rows, parameters by name."""
        return self._json("POST", f"/v1/queries/{_part(name)}", json={"params": params, "max_rows": max_rows})

    def health(self) -> Document:
        """Whether the process answers."""
        return self._json("GET", "/healthz")

    def metrics(self) -> str:
        """Counts and times of the process, as Prometheus reads them."""
        return self._attempt(lambda: self._http.get("/metrics")).text

    def ready(self) -> Document:
        """Whether it can serve its store."""
        return self._json("GET", "/readyz")

    def download(
        self,
        mix_id: str,
        path: str | Path,
        format: DataFormat = "jsonl",  # noqa: A002 - the word of the HTTP parameter
        *,
        advance: Advance | None = None,
    ) -> Path:
        """Save a mix to `path` and return it; the name appears only when the bytes have been verified.

        Parquet is checked against the file's SHA-256 in the manifest, jsonl against `rows_sha256`, openai by its
        number of lines, arrow by decoding every row to its canonical line. `advance` is told each piece's bytes.
        Raises IntegrityError when the check fails; then no file is left.
        """
        if format not in DATA_FORMATS:
            raise BadInputError(f"format {format!r} is none of {', '.join(DATA_FORMATS)}")
        target = Path(path)
        if target.is_dir() or not target.parent.is_dir():
            raise BadInputError(f"{target} cannot be written: give a file name in a folder that exists")
        manifest = self.manifest(mix_id)
        temporary = target.with_name(f".tmp-{target.name}-{secrets.token_hex(4)}")
        try:
            self._attempt(lambda: self._save(mix_id, format, temporary, advance))
            verify_download(temporary, format, manifest)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        return target

    def _save(self, mix_id: str, data_format: DataFormat, path: Path, advance: Advance | None) -> httpx.Response:
        with self._http.stream("GET", f"/v1/mixes/{_part(mix_id)}/data", params={"format": data_format}) as response:
            if response.status_code != 200:
                response.read()
                return response
            with path.open("wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
                    if advance is not None:
                        advance(len(chunk))
            return response

    def _items(self, path: str, key: str, page_size: int) -> Iterator[Document]:
        params: dict[str, Any] = {"limit": page_size}
        while True:
            page = self._json("GET", path, params=params)
            yield from page[key]
            if page["next_after"] is None:
                return
            params["after"] = page["next_after"]

    def _json(self, method: str, path: str, **options: Any) -> Document:
        return _document(self._attempt(lambda: self._http.request(method, path, **options)))

    def _attempt(self, call: Callable[[], httpx.Response]) -> httpx.Response:
        """The first good answer; raises ServiceError on a refusal, RemoteError when nobody answers."""
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            wait_s = min(FIRST_WAIT_S * 2**attempt, MAX_WAIT_S)
            try:
                response = call()
            except httpx.TransportError as error:
                if last:
                    reason = str(error) or type(error).__name__
                    raise RemoteError(f"no answer from {self._http.base_url}: {reason}") from error
            else:
                if response.is_success:
                    return response
                if last or response.status_code not in RETRIED_STATUSES:
                    raise _refusal(response)
                wait_s = _asked_wait_s(response) or wait_s
            time.sleep(wait_s)
        raise AssertionError("the last attempt returns or raises")


def _part(name: str) -> str:
    """A name as one part of a path, whatever it holds."""
    return quote(name, safe="")


def _document(response: httpx.Response) -> Document:
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


def _asked_wait_s(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return min(float(text), MAX_WAIT_S) if text.isdigit() else None
