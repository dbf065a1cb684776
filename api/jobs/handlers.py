"""What a worker does for each kind of job.

A `mix` job runs the same build that the service runs while a caller waits (`api.processes.mix_jobs` puts it into a
process with limits). An `audit` job scores a user's rows with the
worker's models and compares them with a pool. A `tokens` job gives the losses of single tokens of one corpus row.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from api.jobs.board import ROWS_FILE, TOKENS_FILE, WORK_FOLDER, job_path
from api.jobs.control import Control, Reporter, watched
from curator.audit.models import AuditModels
from curator.audit.options import AUDIT_ROWS, parse_options
from curator.audit.run import AuditProgress, audit
from curator.audit.tokens import token_losses
from curator.mix.build import MixResult, build_lasting
from curator.recipe import parse_recipe
from curator.recipe.policy import Policy
from curator.store.store import Store


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
            AuditProgress(lambda name, total: control.stage(name, total, "rows"), control.advance),
        )
        store.write_table(f"{folder}/{ROWS_FILE}", found.rows, AUDIT_ROWS)
        return found.document


@dataclass(frozen=True)
class TokensHandler:
    """Works out token losses with one worker's models."""

    models: AuditModels

    def __call__(self, store: Store, rows: Path, control: Control) -> dict[str, Any]:
        """The token losses of the row that a job names, kept beside it; returns which row, and how many models ran.

        Raises what `token_losses` raises, CancelledError and StoppedError.
        """
        job = control.job
        found = token_losses(
            store,
            job.request["corpus"],
            job.request["example_id"],
            self.models,
            lambda label: control.stage(f"reading under {label}", None, "tokens"),
        )
        store.write_json(f"{job_path(job.tenant, job.job_id)}/{TOKENS_FILE}", found)
        return {
            "corpus": found["corpus"],
            "revision": found["revision"],
            "example_id": found["example_id"],
            "n_models": sum(item["nll"] is not None for item in found["models"]),
        }


def run_mix(store: Store, rows: Path, control: Reporter) -> dict[str, Any]:
    """Build the mix that a job's request asks for; returns its id and whether it is new.

    A mix that is over the service's `mix_ttl_s` and not yet swept is built again. Raises what `build_mix`
    raises, CancelledError and StoppedError: then no mix was made.
    """
    job, request = control.job, control.job.request
    task_set = watched(request["task"], rows, control)
    control.stage("building", task_set.n_rows, "rows")
    policy = Policy.model_validate(request["policy"]) if request["policy"] else None
    ttl_s = request.get("mix_ttl_s")  # absent from jobs of before it was there
    recipe = parse_recipe(request["recipe"])
    result: MixResult = build_lasting(store, task_set, recipe, job.tenant, policy, ttl_s)
    return {"mix_id": result.mix_id, "created": result.created}
