"""Making a fine-tuning job: the recipe, the warnings, and the job that mixes."""

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal, cast

import pyarrow.parquet as pq

from api.errors import ApiError
from api.openai.audits import with_audit
from api.openai.bodies import CreateJob
from api.openai.errors import refused
from api.openai.files import CONTENT_FILE, FileRecord, Files
from api.openai.forward import keep_validation
from api.openai.progress import advance, is_made
from api.openai.recipes import asked_recipe, job_recipe, shown
from api.openai.records import RECORD_FILE, JobRecord, Records, Training, job_id
from api.routes.mixes import mix_request
from api.service import RETRY_AFTER_S, Service
from api.submit import PART_OF, submit
from curator.corpus.task_set import TaskSet
from curator.errors import BadInputError, MissingError
from curator.recipe import Recipe

MAX_ATTEMPTS = 1_000


@dataclass(frozen=True)
class _Asked:
    """A create that passed every check."""

    tenant: str
    request: dict[str, Any]
    recipe: Recipe
    training: FileRecord
    warnings: list[tuple[str, dict[str, Any]]]
    hyperparameters: dict[str, Any] | None  # of a training


def create_job(service: Service, tenant: str, body: CreateJob, is_repeat: bool) -> JobRecord:
    """The job that a body asks for: made now, or found when the same was asked before.

    A job that failed or was cancelled is found by `is_repeat` (the client did not get its answer) alone; looked for on
    purpose it is made again. Everything here blocks. Raises ApiError.
    """
    mode = service.settings.openai_mode
    if mode == "off":
        raise refused(403, "fine_tuning_off", "this service makes no fine-tuning jobs (openai_mode is off)")
    request = body.request()
    hyperparameters = _hyperparameters(service, request) if mode == "train" else None
    files = Files(service.store)
    training = _data_file(files, tenant, request["training_file"], "training_file")
    validation = None
    if request["validation_file"] is not None:
        validation = _data_file(files, tenant, request["validation_file"], "validation_file")
    document, param = asked_recipe(body.recipe, request["metadata"])
    n_task = (training.task or {})["n_rows"]
    policy = service.tenants.policy(tenant)
    recipe = job_recipe(service.tenants.recipe(tenant), document, param, policy, n_task)
    records = Records(service.store)
    with files.task_set(tenant, training) as task_set:
        warnings = _warnings(files, tenant, task_set, validation)
        asked = _Asked(tenant, request, recipe, training, warnings, hyperparameters)
        for attempt in range(MAX_ATTEMPTS):
            ft_id = job_id(tenant, request, recipe.model_dump(mode="json"), attempt)
            record = _find_or_make(service, records, asked, task_set, (ft_id, attempt))
            if is_repeat or record.status not in ("failed", "cancelled"):
                return record
    raise refused(400, "too_many_attempts", f"this job was made {MAX_ATTEMPTS} times: change its seed or suffix")


def _hyperparameters(service: Service, request: dict[str, Any]) -> dict[str, Any]:
    """What is trained with, `auto` as the operator has it; raises ApiError 400 for a model that is not trained here."""
    model = service.models.get(request["model"])
    if model is None:
        names = ", ".join(sorted(service.models))
        message = f"The model '{request['model'][:256]}' is not available for fine-tuning here; there are: {names}"
        raise refused(400, "model_not_available", message, "model")
    try:
        return model.chosen(request["hyperparameters"])
    except BadInputError as error:
        raise refused(400, "invalid_value", error.message, "hyperparameters.learning_rate_multiplier") from error


def _data_file(files: Files, tenant: str, file_id: str, param: str) -> FileRecord:
    """A file of rows that the tenant has uploaded."""
    try:
        record = files.read(tenant, file_id)
    except MissingError as error:
        raise refused(400, f"invalid_{param}", f"invalid {param}: there is no file {file_id}", param) from error
    if record.task is None:
        message = f"invalid {param}: file {file_id} has the purpose {record.purpose!r}, not 'fine-tune'"
        raise refused(400, f"invalid_{param}", message, param)
    return record


def _find_or_make(
    service: Service, records: Records, asked: _Asked, task_set: TaskSet, named: tuple[str, int]
) -> JobRecord:
    ft_id, attempt = named
    with records.held(asked.tenant, ft_id) as is_ours:
        if not is_ours:
            return _held_by_another(service, records, asked.tenant, ft_id)
        try:
            record = records.read(asked.tenant, ft_id)
        except MissingError:
            record = _new(service, asked, ft_id, attempt)
        if record.is_active and not is_made(service, record):
            return _make(service, records, record, asked, task_set)
    return advance(service, record)


def _held_by_another(service: Service, records: Records, tenant: str, ft_id: str) -> JobRecord:
    """The job that another thread or process works on; raises ApiError 503 while it is being made."""
    try:
        record = records.read(tenant, ft_id)
    except MissingError as error:
        raise _busy() from error
    if record.is_active and not is_made(service, record):
        raise _busy()
    return record


def _make(service: Service, records: Records, record: JobRecord, asked: _Asked, task_set: TaskSet) -> JobRecord:
    """Submit the job that mixes, and the audit beside it; the record is kept first, with their ids."""
    made = record
    validation_id = record.asked["validation_file"]
    if record.mode != "mix" and validation_id is not None:
        folder = Files(service.store).folder(asked.tenant, validation_id)
        keep_validation(service, record, f"{folder}/{CONTENT_FILE}")

    def keep(changed: JobRecord) -> None:
        nonlocal made
        made = changed
        records.write(made)

    def announce(work_id: str) -> None:
        keep(made.model_copy(update={"work_id": work_id}))

    request = {**mix_request(service, asked.recipe, task_set, asked.tenant), PART_OF: record.id}
    service.stored.check(asked.tenant, task_set.path.stat().st_size)
    try:
        made = with_audit(service, made, asked.recipe, task_set, keep)
        submit(service, asked.tenant, "mix", request, task_set.path, announce)
    except BaseException:
        with suppress(MissingError):
            service.board.ask_to_cancel(asked.tenant, made.audit_id)
        service.store.delete(f"{records.path(asked.tenant, made.id)}/{RECORD_FILE}")
        raise
    return made


def _new(service: Service, asked: _Asked, ft_id: str, attempt: int) -> JobRecord:
    request, now_s = asked.request, time.time()
    seed = request["seed"]
    record = JobRecord(
        id=ft_id,
        tenant=asked.tenant,
        attempt=attempt,
        mode=cast(Literal["mix", "forward", "train"], service.settings.openai_mode),
        created_s=now_s,
        asked=request,
        recipe=asked.recipe.model_dump(mode="json"),
        seed=int(ft_id[-7:], 16) if seed is None else seed,
        training=None if asked.hyperparameters is None else Training(hyperparameters=asked.hyperparameters),
        is_to_be_posted=service.tenants.webhook(asked.tenant) is not None,
    )
    record = record.event(f"Created fine-tuning job: {ft_id}")
    files = f"training file: {request['training_file']}"
    if request["validation_file"] is not None:
        files += f" and validation file: {request['validation_file']}"
    record = record.event(f"Validating {files}")
    for message, data in asked.warnings:
        record = record.event(message, "warn", data=data)
    if record.mode == "mix" and request["hyperparameters"]:
        names = ", ".join(request["hyperparameters"])
        record = record.event(
            f"Nothing is trained (openai_mode is mix): {names} not used",
            "warn",
            data={"code": "hyperparameters_unused"},
        )
    record = record.event(f"Mixing by the recipe {shown(asked.recipe)}", data={"code": "recipe"})
    return record.event("Files validated, moving job to queued state")


def _warnings(
    files: Files, tenant: str, task_set: TaskSet, validation: FileRecord | None
) -> list[tuple[str, dict[str, Any]]]:
    """What is worth a look in files that are taken: the text, and its code with how many rows it counts."""
    ids = _ids(task_set)
    known = set(ids)
    found = []
    n_repeated = len(ids) - len(known)
    if n_repeated:
        text = f"{n_repeated:,} training rows repeat another one word for word"
        found.append((text, {"code": "duplicate_rows", "rows": n_repeated}))
    if validation is not None:
        with files.task_set(tenant, validation) as held_out:
            n_shared = len([name for name in _ids(held_out) if name in known])
        if n_shared:
            text = f"{n_shared:,} validation rows are also in the training file"
            found.append((text, {"code": "validation_overlap", "rows": n_shared}))
    return found


def _ids(task_set: TaskSet) -> list[str]:
    column = pq.ParquetFile(task_set.path).read(columns=["example_id"]).column(0)
    return [str(value) for value in column.to_pylist()]


def _busy() -> ApiError:
    message = "the same job is being made by another request: try again"
    return ApiError(503, "busy", message, headers={"Retry-After": str(RETRY_AFTER_S)})
