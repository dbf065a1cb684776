"""The service's endpoints, one method each."""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx
import orjson
from pydantic import ValidationError

from curator.client.transport import Advance, Document, ProgressFile, Remote, ServiceError, document_of, path_part
from curator.corpus.formats import Container, Layout, locate, open_chat_file
from curator.corpus.formats.plain import plain_rows, plain_value
from curator.corpus.formats.sources import one_file
from curator.errors import BadInputError, BallastError, IntegrityError
from curator.mix.files import DATA_FORMATS, DataFormat, verify_download
from curator.store.filesystem import atomic_write
from curator.store.scratch import Scratch

OnBadRows = Literal["refuse", "drop"]
Rows = Sequence[Mapping[str, Any]]
OnJob = Callable[[Document], None]  # receives the job whenever it changes
WAIT_S = 20.0  # of one request that waits for an event
PAGE_ROWS = 500


@dataclass(frozen=True)
class DataSet:
    """A user's rows, or where they lie, with what is not to be detected: how records are packed and written.

    A data set with bad rows is refused, unless `on_bad_rows` says that they are left out.
    """

    source: str | Path | Rows
    format: Container | None = None
    layout: Layout | None = None
    on_bad_rows: OnBadRows = "refuse"


Data = str | Path | Rows | DataSet


class Client(Remote):
    """One service. Use it as a context manager, or call `close`.

    `timeout_s` bounds each wait for the service, not a whole transfer; `retries` counts attempts after the first.
    """

    def create_mix(
        self,
        data: Data,
        recipe: Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        background: bool = False,
        advance: Advance | None = None,
        on_job: OnJob | None = None,
    ) -> Document:
        """Send a data set with a recipe: `mix_id`, `created`, `manifest`, `dropped`, `links`.

        It is what `python -m curator mix` reads: a chat file of any format, a folder that `datasets` saved or an id of
        the hub (both read on this machine), or rows in memory; a `DataSet` says how they are read. A file is streamed,
        and `advance` receives each piece's bytes; under an `idempotency_key` the same request gets the first answer
        again. Building may take long: there is no bound on the wait for the answer. Where the service makes a job of
        it, the job is waited for and `on_job` receives its state; with `background` the service makes a job, which is
        returned at once. Raises ServiceError with code `bad_rows` and every bad row in `details`, `bad_recipe` and the
        like, or with the job's own error.
        """
        headers = {"Idempotency-Key": idempotency_key or secrets.token_hex(16)}  # of all attempts of this call
        if background:
            headers["Prefer"] = "respond-async"
        answer = self._send("/v1/mixes", data, {"recipe": recipe}, headers, advance)
        if background or "job_id" not in answer:
            return answer
        job = self.wait_job(answer["job_id"], on_job=on_job)
        mix_id, links = job["result"]["mix_id"], {"self": job["links"]["result"]}
        return {**job["result"], "manifest": self.manifest(mix_id), "links": links}

    def preview_mix(self, data: Data, recipe: Mapping[str, Any]) -> Document:
        """What `create_mix` would give, without storing it: `manifest`, `dropped`, `cost`."""
        return self._send("/v1/mixes/preview", data, {"recipe": recipe}, {}, None)

    def check(self, data: Data, *, corpus: str | None = None, openai: bool = False) -> Document:
        """What `python -m curator doctor` says of a data set, by the service: findings, counts, and `ok`.

        With a `corpus` its aligned model's template and window are looked at too. Nothing is stored.
        """
        return self._send("/v1/checks", data, {"check": {"corpus": corpus, "openai": openai}}, {}, None)

    def mix_private(
        self, data: Data, recipe: Mapping[str, Any], *, store: str | Path = "./store", spare: int | None = None
    ) -> Document:
        """Mix without sending the rows: only their number and hashes are sent. `mix_id`, `created`, `manifest`.

        The mix is written into `store`, a store of this machine, and is the one that `create_mix` makes of the same
        rows. `spare` asks for more safe rows than the usual ones to choose from, for data that holds many of the pool's
        own rows. Raises BadRowsError for bad rows, ServiceError for rules of the recipe that would have to read the
        rows, NotEnoughRowsError naming the `spare` to ask for, and IntegrityError for an answer to another request.
        """
        from curator.corpus.task_set import read_task_set, task_set_from_rows
        from curator.mix.private import Offer, accept, declare
        from curator.recipe import parse_recipe
        from curator.store.store import Store

        with Scratch("upload") as folder:
            given = data if isinstance(data, DataSet) else DataSet(data)
            if isinstance(given.source, str | Path):
                task_set = read_task_set(given.source, folder, format=given.format, layout=given.layout)
            else:
                task_set = task_set_from_rows(given.source, folder, layout=given.layout)
            task_set.require_usable(given.on_bad_rows)
            asked = declare(task_set, parse_recipe(dict(recipe)), spare)
            timeout = httpx.Timeout(self._http.timeout.write, connect=5.0, read=None)
            answer = self._json("POST", "/v1/mixes/private", json=asked.model_dump(mode="json"), timeout=timeout)
            result = accept(Offer.model_validate(answer), task_set, Store(store).open())
        manifest = result.manifest.model_dump(mode="json")
        return {"mix_id": result.mix_id, "created": result.created, "manifest": manifest}

    def audit(
        self,
        data: Data,
        options: Mapping[str, Any],
        *,
        background: bool = False,
        advance: Advance | None = None,
        on_job: OnJob | None = None,
    ) -> Document:
        """Compare rows with a scored corpus (`options`: corpus, score, ...): the verdict, and `job_id` for its rows.

        The job is waited for and `on_job` receives its state; with `background` it is returned at once. Raises
        ServiceError as `create_mix`.
        """
        headers = {"Idempotency-Key": secrets.token_hex(16)}
        job = self._send("/v1/audits", data, {"audit": options}, headers, advance)
        if background:
            return job
        return {**self.wait_job(job["job_id"], on_job=on_job)["result"], "job_id": job["job_id"]}

    def _send(
        self,
        link: str,
        data: Data,
        asked: Mapping[str, Mapping[str, Any]],
        headers: dict[str, str],
        advance: Advance | None,
    ) -> Document:
        timeout = httpx.Timeout(self._http.timeout.write, connect=5.0, read=None)
        ((name, document),) = asked.items()
        given = data if isinstance(data, DataSet) else DataSet(data)
        fields: dict[str, str] = {"on_bad_rows": given.on_bad_rows} | {
            key: value for key, value in (("format", given.format), ("layout", given.layout)) if value is not None
        }
        if not isinstance(given.source, str | Path):
            body = {"rows": plain_rows(given.source), name: plain_value(document, name), **fields}
            content, headers = orjson.dumps(body), {**headers, "Content-Type": "application/json"}
            return self._json("POST", link, content=content, headers=headers, timeout=timeout)
        fields[name] = orjson.dumps(plain_value(document, name)).decode()
        located = locate(given.source)
        if located.container is not None:
            fields["format"] = located.container
        with Scratch("upload") as folder:
            path = one_file(located, folder)

            def attempt() -> httpx.Response:
                with open_chat_file(path) as file:  # anew for each attempt
                    reported = ProgressFile(file, advance)
                    files = {"file": (path.name, reported)}
                    return self._http.post(link, data=fields, files=files, headers=headers, timeout=timeout)  # type: ignore[arg-type]

            return document_of(self._attempt(attempt))

    def manifest(self, mix_id: str) -> Document:
        """A mix's manifest."""
        return self._json("GET", f"/v1/mixes/{path_part(mix_id)}")

    def signature(self, mix_id: str) -> Document:
        """The signature of a mix's manifest; raises ServiceError with code `not_signed` where there is none."""
        return self._json("GET", f"/v1/mixes/{path_part(mix_id)}/signature")

    def verify_signature(self, mix_id: str, key: str | Path) -> Document:
        """The manifest, when it carries the signature of a provider's public key (PEM).

        Raises IntegrityError when another key signed it or it was changed, ServiceError where there is no signature.
        """
        manifest = self.manifest(mix_id)
        self._check_signature(mix_id, manifest, key)
        return manifest

    def _check_signature(self, mix_id: str, manifest: Document, key: str | Path) -> None:
        from curator.mix.sign import Signature, verify_signature

        try:
            signature = Signature.model_validate(self.signature(mix_id))
        except ValidationError as error:
            raise IntegrityError(f"the answer for mix {mix_id} is not a signature") from error
        verify_signature(manifest, signature, Path(key))

    def list_mixes(self) -> Iterator[Document]:
        """Every mix in order of ids, fetched page by page."""
        return self._items("/v1/mixes", "mixes", PAGE_ROWS)

    def iter_rows(self, mix_id: str, *, page_rows: int = PAGE_ROWS) -> Iterator[Document]:
        """The rows of a mix in training order with their lineage, fetched page by page."""
        return self._items(f"/v1/mixes/{path_part(mix_id)}/rows", "rows", page_rows)

    def delete_mix(self, mix_id: str) -> None:
        """Remove a mix; one that is gone when the answer was lost and the request repeated was removed."""
        self._delete(f"/v1/mixes/{path_part(mix_id)}", is_gone=True)

    def jobs(self, *, kind: str | None = None, state: str | None = None) -> Iterator[Document]:
        """Every job in order of time, fetched page by page; of a kind (mix, audit, train, tokens) or state."""
        asked = {name: value for name, value in (("kind", kind), ("state", state)) if value is not None}
        return self._items("/v1/jobs", "jobs", PAGE_ROWS, **asked)

    def job(self, job_id: str) -> Document:
        """A job as it stands: `state`, `progress`, `result`, `error`."""
        return self._json("GET", f"/v1/jobs/{path_part(job_id)}")

    def job_events(self, job_id: str, *, after: int = 0, wait_s: float = 0.0) -> Document:
        """Events of a job that follow number `after`, and its state; waits up to `wait_s` seconds for one."""
        params = {"after": after, "wait_s": wait_s}
        return self._json("GET", f"/v1/jobs/{path_part(job_id)}/events", params=params)

    def wait_job(self, job_id: str, *, on_job: OnJob | None = None) -> Document:
        """The job once it is done; `on_job` receives it whenever it changes.

        Raises ServiceError with the job's own error when it failed, and code `cancelled` when it was cancelled.
        """
        after = 0
        while True:
            reported = self.job_events(job_id, after=after, wait_s=min(WAIT_S, self._patience_s))
            after = reported["events"][-1]["number"] if reported["events"] else after
            job = self.job(job_id)
            if on_job is not None:
                on_job(job)
            if job["state"] == "done":
                return job
            if job["state"] == "failed":
                error = job["error"]
                raise ServiceError(200, error["code"], error["message"], error["details"])
            if job["state"] == "cancelled":
                raise ServiceError(200, "cancelled", f"job {job_id} was cancelled")

    def delete_job(self, job_id: str) -> None:
        """Cancel a job, or remove one that has ended, with its results.

        Raises RemoteError when the answer was lost: a second request would remove what the first had cancelled.
        """
        self._delete(f"/v1/jobs/{path_part(job_id)}", is_gone=False)

    def audit_result(self, job_id: str) -> Document:
        """The verdict of an audit that is done."""
        return self._json("GET", f"/v1/audits/{path_part(job_id)}")

    def audit_rows(self, job_id: str, *, page_rows: int = PAGE_ROWS) -> Iterator[Document]:
        """The rows of an audit in the order sent, fetched page by page."""
        return self._items(f"/v1/audits/{path_part(job_id)}/rows", "rows", page_rows)

    def token_losses(self, corpus: str, example_id: str, *, on_job: OnJob | None = None) -> Document:
        """The loss of each token of a corpus row under every model that a worker has, in nats; waits for that worker.

        `on_job` receives the job's state meanwhile.
        """
        asked = {"corpus": corpus, "example_id": example_id}
        job = self._json("POST", "/v1/token-losses", json=asked)
        self.wait_job(job["job_id"], on_job=on_job)
        return self.token_loss_result(job["job_id"])

    def token_loss_result(self, job_id: str) -> Document:
        """What a finished job for token losses found."""
        return self._json("GET", f"/v1/token-losses/{path_part(job_id)}")

    def reports(self) -> list[Document]:
        """Reports of comparisons and training runs that the operator shows: name, title, n_bytes, modified_at."""
        found: list[Document] = self._json("GET", "/v1/reports")["reports"]
        return found

    def report(self, name: str) -> Document:
        """One of them: its Markdown as `text`, its JSON document as `data`, names of its pictures."""
        return self._json("GET", "/v1/reports/" + "/".join(path_part(part) for part in name.split("/")))

    def policy(self) -> Document:
        """What this key's tenant must fit: `policy` (None: nothing), `policy_sha256`, and `quotas`."""
        return self._json("GET", "/v1/policy")

    def usage(self, **asked: str) -> Iterator[Document]:
        """What tenants did, in order of time, fetched page by page; `asked`: tenant, since, until. For admin keys."""
        return self._items("/v1/usage", "events", PAGE_ROWS, **asked)

    def usage_totals(self, **asked: str) -> list[Document]:
        """Events, rows and bytes by tenant and action; `asked`: tenant, since, until. For admin keys."""
        found: list[Document] = self._json("GET", "/v1/usage/totals", params=asked)["totals"]
        return found

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
        key: str | Path | None = None,
    ) -> Path:
        """Save a mix to `path` and return it; the name appears only when the bytes have been verified.

        Parquet is checked against the file's SHA-256 in the manifest, jsonl against `rows_sha256`, openai by its
        number of lines, arrow by decoding every row to its canonical line; with `key`, a provider's public key (PEM),
        the manifest must carry its signature. `advance` receives each piece's bytes.
        Raises IntegrityError when the check fails; then no file is left.
        """
        if format not in DATA_FORMATS:
            raise BadInputError(f"format {format!r} is none of {', '.join(DATA_FORMATS)}")
        target = Path(path)
        try:
            if target.is_dir() or not target.parent.is_dir():
                raise BadInputError(f"{target} cannot be written: give a file name in a folder that exists")
        except OSError as error:
            raise BadInputError(f"{target} cannot be written: {error.strerror}") from error
        manifest = self.manifest(mix_id)
        if key is not None:
            self._check_signature(mix_id, manifest, key)
        try:
            with atomic_write(target, durable=True) as temporary:
                self._attempt(lambda: self._save(mix_id, format, temporary, advance))
                verify_download(temporary, format, manifest)
        except BallastError:
            raise
        except OSError as error:  # of the disk or the folder
            raise BadInputError(f"{target} cannot be written: {error.strerror or error}") from error
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
