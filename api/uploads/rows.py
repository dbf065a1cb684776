"""The data set and the options of an upload, checked whole and counted against the tenant's quota.

The recipe (or the audit's options) is JSON or YAML, decoded without running anything and with bounded memory.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from api.errors import ApiError
from api.schemas import DroppedRows
from api.service import Service
from api.settings import Settings
from api.uploads.receive import DOCUMENTS, Upload
from curator.corpus.formats import Container, Layout, ReadLimits
from curator.corpus.task_set import TaskSet, read_task_set, task_set_from_rows
from curator.errors import BadInputError, RecipeError
from curator.recipe.base import Strict
from curator.recipe.document import MAX_DOCUMENT_BYTES, load_document
from curator.recipe.problems import problem_line, problems_of

LEAVE_OUT = 'a part of the form, -F on_bad_rows=drop, or "on_bad_rows": "drop" in a JSON body'


def part_document(upload: Upload, name: str, *, required: bool = True) -> dict[str, Any]:
    """The object that the part `name` (one of DOCUMENTS) of an upload holds; JSON text is read as the YAML it is.

    Raises ApiError 422 when there is no such part (an empty object where it is not `required`); RecipeError
    (BadInputError for another part) when it is not an object, naming the line where it is neither JSON nor YAML.
    """
    if name not in upload.fields and not required:
        return {}
    if name not in upload.fields:
        raise ApiError(422, "missing_part", f'the {name} is missing: the least is {{"corpus": NAME}}')
    part = upload.fields[name]
    if not isinstance(part, str) and len(json.dumps(part)) > MAX_DOCUMENT_BYTES:
        raise ApiError(413, "too_large", f"the {name} is over {MAX_DOCUMENT_BYTES} bytes")
    try:
        document = load_document(part) if isinstance(part, str) else part
        if not isinstance(document, dict):
            raise ValueError("it must be an object (JSON) or a mapping (YAML)")
    except ValueError as error:
        refused = RecipeError if name == "recipe" else BadInputError
        raise refused(f"{name} refused: {error}") from error
    return document


class ReadChoice(Strict):
    """What may stand beside the rows and the recipe or the audit's options."""

    on_bad_rows: Literal["refuse", "drop"] = "refuse"
    format: Container | None = None
    layout: Layout | None = None


def checked_rows(service: Service, upload: Upload, tenant: str, max_rows: int) -> TaskSet:
    """The rows of an upload, which blocks.

    Raises ApiError 422 listing every bad row, 413 for more than `max_rows` rows or over the quota, 429 for now.
    """
    options = read_choice(upload)
    task_set = _read(service, upload, options, max_rows)
    _check(task_set, options, service.settings)
    service.quotas.count_rows(tenant, task_set.n_rows)
    return task_set


def read_choice(upload: Upload) -> ReadChoice:
    """How the rows are read; raises ApiError 422 for fields that are none of these."""
    given = {name: value for name, value in upload.fields.items() if name not in DOCUMENTS}
    try:
        return ReadChoice.model_validate(given)
    except ValidationError as error:
        details = problems_of(error, show_values=False)
        raise ApiError(422, "bad_parameters", problem_line(details), details=details) from error


def _read(service: Service, upload: Upload, options: ReadChoice, max_rows: int) -> TaskSet:
    settings = service.settings
    limits = ReadLimits(settings.max_unpacked_bytes, max_rows, settings.max_row_bytes)
    if upload.rows is not None:
        return task_set_from_rows(upload.rows, upload.folder, layout=options.layout, limits=limits)
    return service.run_work(_read_file, upload.path, upload.folder, options, upload.name, limits)


def _read_file(path: Path, folder: Path, options: ReadChoice, name: str, limits: ReadLimits) -> TaskSet:
    """Reads a data set; runs in a process of its own."""
    return read_task_set(path, folder, format=options.format, layout=options.layout, name=name, limits=limits)


def _check(task_set: TaskSet, options: ReadChoice, settings: Settings) -> None:
    """Refuse what is empty, or has bad rows that were not to be dropped."""
    if task_set.n_rejected and (options.on_bad_rows == "refuse" or not task_set.n_rows):
        dropped = dropped_rows(task_set, settings)
        remedy = "mend them, or leave them out by " + LEAVE_OUT if task_set.n_rows else "no row can be used"
        message = f"{task_set.n_rejected} of {task_set.n_parsed} rows are bad: {remedy}"
        raise ApiError(422, "bad_rows", message, details=dropped.details, truncated=dropped.truncated)
    if not task_set.n_rows:
        raise ApiError(422, "no_rows", "the data set has no rows")


def dropped_rows(task_set: TaskSet, settings: Settings) -> DroppedRows:
    """The bad rows of a data set, listed up to the service's bound."""
    rejects = task_set.rejects[: settings.max_bad_rows]
    return DroppedRows(
        n_rows=task_set.n_rejected,
        codes=task_set.reject_codes,
        details=[problem for reject in rejects for problem in reject.as_dicts()][: settings.max_bad_rows],
        truncated=task_set.n_rejected > settings.max_bad_rows
        or sum(len(reject.problems) for reject in rejects) > settings.max_bad_rows,
    )
