"""Jobs of kind `audit`: a user's rows scored by the worker's models and compared with a pool."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator.audit.columns import AUDIT_ROWS
from curator.audit.models import AuditModels
from curator.audit.options import parse_options
from curator.audit.run import audit
from curator.jobs.board import ROWS_FILE, WORK_FOLDER, job_path
from curator.jobs.control import Control, watched
from curator.store import Store


@dataclass(frozen=True)
class AuditHandler:
    """Runs audits with one worker's models."""

    models: AuditModels

    def __call__(self, store: Store, rows: Path, control: Control) -> dict[str, Any]:
        """Audit the job's rows; returns the verdict's document, the rows are kept beside the job.

        What was scored stays in the job's folder until its end, so that a job that is taken up again goes on there.
        Raises what `audit` raises, CancelledError and StoppedError.
        """
        request = control.job.request
        folder = job_path(control.job.tenant, control.job.job_id)
        work = Store(store.url(f"{folder}/{WORK_FOLDER}"))
        task_set = watched(request["task"], rows, control)
        found = audit(
            store,
            work,
            task_set,
            parse_options(request["audit"]),
            self.models,
            lambda name, total: control.stage(name, total, "rows"),
            control.advance,
        )
        store.write_table(f"{folder}/{ROWS_FILE}", found.rows, AUDIT_ROWS)
        return found.document
