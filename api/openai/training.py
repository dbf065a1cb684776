"""The mode `train`: once the mix is made, a job of the kind `train` for a worker; its steps become events.

The training job is announced in the record before it is made, and made once: of a service that was killed in between
only its id is there, and the next look makes it. Steps and checkpoints are read from the run's folder in the store.
"""

import re
from typing import Any

from api.errors import ApiError
from api.jobs.record import Job
from api.jobs.training import CONFIG, MARKER, RESULT, checkpoint_id, step_lines
from api.openai.files import content_id
from api.openai.records import COMPLETED, JobRecord, Records, Training
from api.service import Service
from api.submit import PART_OF, submit
from api.tenancy.quotas import TENANT_FULL
from curator.errors import MissingError

_UNFIT = re.compile(r"[^A-Za-z0-9._-]")


def model_id(record: JobRecord) -> str:
    """The id of the model that a job makes, which is also the name of its folder."""
    suffix = _UNFIT.sub("-", record.asked["suffix"] or "")
    return f"ft:{record.asked['model']}:{record.tenant}:{suffix}:{record.id.removeprefix('ftjob-')}"


def trained(service: Service, record: JobRecord) -> JobRecord:
    """The job with what its training has come to; for the holder of its lock, of a job whose mix is made."""
    records, training = Records(service.store), _training(record)
    is_cancelled = records.cancel_asked(record.tenant, record.id)
    if not training.is_made:
        if not (training.work_id and service.board.has_record(record.tenant, training.work_id)):
            if is_cancelled:
                return record.ended("cancelled", "Fine-tuning job cancelled")
            try:
                record = _submit(service, records, record)
            except ApiError as error:
                if error.code == TENANT_FULL:
                    shown = {"code": error.code, "message": error.message, "param": None}
                    return record.ended("failed", f"The job failed: {error.message}", shown)
                return record  # the tenant's share of jobs is at work, or the queue is away: the next look tries again
        record = _with(record, is_made=True)
    try:
        job = service.board.read(record.tenant, _training(record).work_id)
    except MissingError:
        return _without_job(service, records, record)
    if is_cancelled and job.active:
        job = service.board.ask_to_cancel(record.tenant, job.job_id)
    record = _followed(service, records, record, job.n_attempts)
    if job.state == "cancelled":
        return record.ended("cancelled", "Fine-tuning job cancelled")
    if job.state == "failed":
        return failed(record, job)
    return _succeeded(records, record, job.result or {}) if job.state == "done" else record


def _without_job(service: Service, records: Records, record: JobRecord) -> JobRecord:
    """The job at its end once its training job was removed: it has succeeded where that had finished."""
    try:
        result = service.store.read_json(f"{records.run_path(record.tenant, record.id)}/{RESULT}")
    except MissingError:
        return record.ended("cancelled", "Fine-tuning job cancelled: its training job was removed")
    return _succeeded(records, _followed(service, records, record, _training(record).n_attempts), result)


def failed(record: JobRecord, job: Job) -> JobRecord:
    """The job at the end that a job of `api.jobs` came to."""
    assert job.error is not None
    error = {"code": job.error.code, "message": job.error.message, "param": None}
    return record.ended("failed", f"The job failed: {job.error.message}", error)


def _submit(service: Service, records: Records, record: JobRecord) -> JobRecord:
    """Submit the job that trains; the record is kept first, with its id."""
    made = record

    def announce(work_id: str) -> None:
        nonlocal made
        made = _with(record, work_id=work_id)
        records.write(made)

    validation = records.validation_path(record.tenant, record.id)
    request = {
        "model": record.asked["model"],
        "hyperparameters": _training(record).hyperparameters,
        "seed": record.seed,
        "mix_id": record.facts["ballast_mix_id"],
        "validation": None if record.asked["validation_file"] is None else validation,
        "model_id": model_id(record),
        "run": records.run_path(record.tenant, record.id),
        "models": records.models_path(record.tenant),
        PART_OF: record.id,
    }
    service.stored.check(record.tenant, 0)  # how large the model will be is not known
    submit(service, record.tenant, "train", request, None, announce)
    return made


def _followed(service: Service, records: Records, record: JobRecord, n_attempts: int) -> JobRecord:
    """The job with events for the steps and checkpoints since the last look."""
    training, run = _training(record), records.run_path(record.tenant, record.id)
    if n_attempts > training.n_attempts:
        if training.n_attempts:
            text = (
                "The worker that trained died: training goes on from its newest checkpoint, or begins again without one"
            )
            record = record.event(text, "warn", data={"code": "retried"})
        record = _with(record, n_attempts=n_attempts)
    lines = {line["step"]: line for line in step_lines(service.store, run)}
    if not lines:
        return record
    try:
        n_steps = int(service.store.read_json(f"{run}/{CONFIG}")["resolved"]["steps"])
    except MissingError:  # a run that begins again removes it
        return record
    for step in sorted(step for step in lines if step > training.last_step):
        loss = lines[step].get("loss")
        shown = "none" if loss is None else f"{loss:.2f}"
        data = {"step": step, "total_steps": n_steps, "train_loss": loss, "learning_rate": lines[step]["lr"]}
        record = record.event(f"Step {step}/{n_steps}: training loss={shown}", type="metrics", data=data)
    return _with_checkpoints(service, records, _with(record, last_step=max(training.last_step, *lines)), lines)


def _with_checkpoints(
    service: Service, records: Records, record: JobRecord, lines: dict[int, dict[str, Any]]
) -> JobRecord:
    """The job with the checkpoints that lie in the store, in the order of their steps."""
    name, folder = model_id(record), records.models_path(record.tenant)
    known = {item["step_number"]: item for item in _training(record).checkpoints}
    found = []
    for snapshot in service.store.list(folder, checkpoint_id(name, "*")):
        step, marker = int(snapshot.rpartition("-")[2]), f"{folder}/{snapshot}/{MARKER}"
        if step in known or step not in lines or not service.store.exists(marker):
            found += [known[step]] if step in known else []
            continue
        item = {
            "id": content_id("ftckpt", [record.id, step]),
            "object": "fine_tuning.job.checkpoint",
            "created_at": int(service.store.modified(marker).timestamp()),
            "fine_tuned_model_checkpoint": snapshot,
            "fine_tuning_job_id": record.id,
            "metrics": {"step": step, "train_loss": lines[step].get("loss")},
            "step_number": step,
        }
        found.append(item)
        record = record.event(f"Checkpoint created at step {step}", data={"code": "checkpoint", "model": snapshot})
    return _with(record, checkpoints=sorted(found, key=lambda item: int(item["step_number"])))


def _succeeded(records: Records, record: JobRecord, result: dict[str, Any]) -> JobRecord:
    name = str(result["model_id"])
    facts = {
        **record.facts,
        "ballast_model_folder": f"{records.models_path(record.tenant)}/{name}",
        "ballast_model_sha256": str(result["sha256"]),
    }
    if "validation_loss" in result:
        loss = float(result["validation_loss"])
        facts["ballast_validation_loss"] = f"{loss:.4f}"
        record = record.event(f"Full validation loss={loss:.2f}", type="metrics", data={"full_valid_loss": loss})
    elif "validation_error" in result:
        text = f"The validation file was not measured: {result['validation_error']}"
        record = record.event(text, "warn", data={"code": "validation_failed"})
    changes = {"model": name, "trained_tokens": int(result["tokens"]), "facts": facts}
    record = record.model_copy(update=changes).event("New fine-tuned model created", data={"model": name})
    return record.ended("succeeded", COMPLETED)


def remove_models(records: Records, record: JobRecord) -> None:
    """Remove a job's model and its checkpoints, if they are there."""
    folder, name = records.models_path(record.tenant), model_id(record)
    for snapshot in records.store.list(folder, checkpoint_id(name, "*")):
        records.store.delete(f"{folder}/{snapshot}")
    records.store.delete(f"{folder}/{name}")


def tidy(records: Records, record: JobRecord) -> None:
    """Remove what the training of a job that has ended left: its run, and the checkpoints of one without a model."""
    if record.training is None or record.is_active:
        return
    run = records.run_path(record.tenant, record.id)
    if records.store.exists(run):
        records.store.delete(run)
        if record.status != "succeeded":
            remove_models(records, record)


def _training(record: JobRecord) -> Training:
    assert record.training is not None
    return record.training


def _with(record: JobRecord, **changes: Any) -> JobRecord:
    return record.model_copy(update={"training": _training(record).model_copy(update=changes)})
