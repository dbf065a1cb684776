"""The client's calls about jobs: list, look, wait, cancel, and the rows of audits."""

from collections.abc import Callable, Iterator

from curator.remote import PAGE_ROWS, Remote, ServiceError, path_part
from curator.transfers import Document

OnJob = Callable[[Document], None]  # told the job whenever something happened to it
WAIT_S = 20.0  # of one request that waits for an event


class JobCalls(Remote):
    """What `Client` can ask about jobs and audits."""

    def jobs(self, *, kind: str | None = None, state: str | None = None) -> Iterator[Document]:
        """Every job in order of time, fetched page by page; only of a kind (mix, audit) or in a state."""
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
        """The job once it is done; `on_job` is told of it whenever something happened.

        Raises ServiceError with the job's own error when it failed, and code `cancelled` when it was cancelled.
        """
        after = 0
        while True:
            told = self.job_events(job_id, after=after, wait_s=min(WAIT_S, self._patience_s))
            after = told["events"][-1]["number"] if told["events"] else after
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
