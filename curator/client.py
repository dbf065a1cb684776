"""Client of the HTTP service: `with Client(url) as client: client.create_mix("task.jsonl", {"corpus": "chats"})`.

Every call raises RemoteError when the service answers with an error or not at all. Calls that may be repeated
without harm (a mix's id follows from what is asked, a job's from its Idempotency-Key) are tried again on a lost
connection, 429, 502, 503 and 504. A download is verified against the manifest before it gets its name.
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import httpx
import orjson

from curator.client_jobs import JobCalls, OnJob
from curator.errors import BadInputError, MissingError
from curator.remote import PAGE_ROWS, RETRIED_STATUSES, ServiceError, document_of, path_part
from curator.transfers import Advance, DataFormat, Document, ToldFile, verify_download

__all__ = ["DATA_FORMATS", "RETRIED_STATUSES", "Advance", "Client", "DataFormat", "Document", "OnJob", "ServiceError"]

DATA_FORMATS: tuple[DataFormat, ...] = ("jsonl", "parquet", "arrow", "openai")
Data = str | Path | Sequence[Mapping[str, Any]]
OnBadRows = Literal["refuse", "drop"]


class Client(JobCalls):
    """One service. Use it as a context manager, or call `close`.

    `timeout_s` bounds each wait for the service, not a whole transfer; `retries` counts attempts after the first.
    """

    def create_mix(
        self,
        data: Data,
        recipe: Mapping[str, Any],
        *,
        on_bad_rows: OnBadRows = "refuse",
        idempotency_key: str | None = None,
        background: bool = False,
        advance: Advance | None = None,
        on_job: OnJob | None = None,
    ) -> Document:
        """Send a file or rows with a recipe: `mix_id`, `created`, `manifest`, `dropped`, `links`.

        A file is streamed, and `advance` told each piece's bytes; under an `idempotency_key` the same request gets
        the first answer again. Building may take long: there is no bound on the wait for the answer. Where the
        service makes a job of it, the job is waited for and `on_job` told how it stands; with `background` the
        service is asked for a job, which is returned at once. Raises ServiceError with code `bad_rows` and every
        bad row in `details`, `bad_recipe` and the like, or with the job's own error.
        """
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}  # of all attempts of this call
        if background:
            headers["Prefer"] = "respond-async"
        answer = self._send("/v1/mixes", data, {"recipe": recipe}, on_bad_rows, headers, advance)
        if background or "job_id" not in answer:
            return answer
        result = self.wait_job(answer["job_id"], on_job=on_job)["result"]
        links = {"self": f"/v1/mixes/{result['mix_id']}"}
        return {**result, "manifest": self.manifest(result["mix_id"]), "links": links}

    def preview_mix(self, data: Data, recipe: Mapping[str, Any], *, on_bad_rows: OnBadRows = "refuse") -> Document:
        """What `create_mix` would give, without storing it: `manifest`, `dropped`, `cost`."""
        return self._send("/v1/mixes/preview", data, {"recipe": recipe}, on_bad_rows, {}, None)

    def audit(
        self,
        data: Data,
        options: Mapping[str, Any],
        *,
        on_bad_rows: OnBadRows = "refuse",
        background: bool = False,
        advance: Advance | None = None,
        on_job: OnJob | None = None,
    ) -> Document:
        """Compare rows with a scored corpus (`options`: corpus, score, ...): the verdict, and `job_id` for its rows.

        The job is waited for and `on_job` told how it stands; with `background` it is returned at once. Raises
        ServiceError as `create_mix`.
        """
        headers = {"Idempotency-Key": secrets.token_hex(16)}
        job = self._send("/v1/audits", data, {"audit": options}, on_bad_rows, headers, advance)
        if background:
            return job
        return {**self.wait_job(job["job_id"], on_job=on_job)["result"], "job_id": job["job_id"]}

    def _send(
        self,
        link: str,
        data: Data,
        asked: Mapping[str, Mapping[str, Any]],
        on_bad_rows: str,
        headers: dict[str, str],
        advance: Advance | None,
    ) -> Document:
        timeout = httpx.Timeout(self._http.timeout.write, connect=5.0, read=None)
        ((name, document),) = asked.items()
        if not isinstance(data, str | Path):
            body = {"rows": [dict(row) for row in data], name: dict(document), "on_bad_rows": on_bad_rows}
            content, headers = orjson.dumps(body), {**headers, "Content-Type": "application/json"}
            return self._json("POST", link, content=content, headers=headers, timeout=timeout)
        path = Path(data)
        if not path.is_file():
            raise MissingError(f"there is no file {path}")
        fields = {name: orjson.dumps(dict(document)).decode(), "on_bad_rows": on_bad_rows}

        def attempt() -> httpx.Response:
            with path.open("rb") as file:  # opened anew for each attempt
                told = ToldFile(file, advance)
                files = {"file": (path.name, told)}
                return self._http.post(link, data=fields, files=files, headers=headers, timeout=timeout)  # type: ignore[arg-type]

        return document_of(self._attempt(attempt))

    def manifest(self, mix_id: str) -> Document:
        """A mix's manifest."""
        return self._json("GET", f"/v1/mixes/{path_part(mix_id)}")

    def list_mixes(self) -> Iterator[Document]:
        """Every mix in order of ids, fetched page by page."""
        return self._items("/v1/mixes", "mixes", PAGE_ROWS)

    def iter_rows(self, mix_id: str, *, page_rows: int = PAGE_ROWS) -> Iterator[Document]:
        """The rows of a mix in training order with their lineage, fetched page by page."""
        return self._items(f"/v1/mixes/{path_part(mix_id)}/rows", "rows", page_rows)

    def delete_mix(self, mix_id: str) -> None:
        """Remove a mix; one that is gone when the answer was lost and asked for again was removed."""
        self._delete(f"/v1/mixes/{path_part(mix_id)}", is_gone=True)

    def corpora(self) -> list[Document]:
        """The corpora that recipes may name."""
        found: list[Document] = self._json("GET", "/v1/corpora")["corpora"]
        return found

    def corpus(self, name: str) -> Document:
        """One corpus with its scorers."""
        return self._json("GET", f"/v1/corpora/{path_part(name)}")

    def gap(self, name: str, **params: Any) -> Document:
        """Quantiles and histogram of a corpus's gap; `params`: score, eps, hold_out, bins."""
        return self._json("GET", f"/v1/corpora/{path_part(name)}/gap", params=params)

    def sql(self, statement: str, *, max_rows: int | None = None) -> Document:
        """One read-only SELECT over the scored corpora: `columns`, `rows`, `n_rows`, `truncated`."""
        body = {"statement": statement, "max_rows": max_rows}
        return self._json("POST", "/v1/sql", json=body)

    def sql_bytes(
        self,
        statement: str,
        format: Literal["csv", "arrow", "parquet"],  # noqa: A002
        *,
        max_rows: int | None = None,
    ) -> bytes:
        """The same answer as a file's bytes, which cannot say that there were more rows.

        Raises ServiceError with code `truncated` when the service's own bounds cut it, rather than at `max_rows`.
        """
        return self._whole_bytes("/v1/sql", {"statement": statement, "format": format}, max_rows)

    def queries(self) -> list[Document]:
        """The named queries with their parameters."""
        found: list[Document] = self._json("GET", "/v1/queries")["queries"]
        return found

    def query(self, name: str, *, max_rows: int | None = None, **params: Any) -> Document:
        """One named query's rows, parameters by name."""
        return self._json("POST", f"/v1/queries/{path_part(name)}", json={"params": params, "max_rows": max_rows})

    def query_bytes(
        self,
        name: str,
        format: Literal["csv", "arrow", "parquet"],  # noqa: A002
        *,
        max_rows: int | None = None,
        **params: Any,
    ) -> bytes:
        """The same answer as a file's bytes; raises as `sql_bytes`."""
        return self._whole_bytes(f"/v1/queries/{path_part(name)}", {"params": params, "format": format}, max_rows)

    def _whole_bytes(self, link: str, asked: Document, max_rows: int | None) -> bytes:
        answer = self._attempt(lambda: self._http.post(link, json={**asked, "max_rows": max_rows}))
        n_rows = int(answer.headers.get("x-ballast-rows", -1))
        if answer.headers.get("x-ballast-truncated") == "true" and n_rows != max_rows:
            message = f"the service's bounds cut the answer after {n_rows} rows: narrow it down, or ask for max_rows"
            raise ServiceError(200, "truncated", message)
        return answer.content

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
        with self._http.stream(
            "GET", f"/v1/mixes/{path_part(mix_id)}/data", params={"format": data_format}
        ) as response:
            if response.status_code != 200:
                response.read()
                return response
            with path.open("wb") as file:
                for chunk in response.iter_bytes():
                    file.write(chunk)
                    if advance is not None:
                        advance(len(chunk))
            return response
