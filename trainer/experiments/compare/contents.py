"""Hashes of the files that a plan names: a file corrected in place makes other cells, as another file does."""

from collections.abc import Sequence
from pathlib import Path

from curator.errors import BadInputError, MissingError
from curator.scoring.identity import weights_sha256
from trainer.data.inputs import data_sha256
from trainer.experiments.compare.data import source_path
from trainer.experiments.compare.settings import Plan


def with_contents(plan: Plan, *, needed: bool) -> Plan:
    """The plan with `contents`: SHA-256 of every file that it names (of a model folder its weights' hash).

    Raises BadInputError for a file that is not there, unless `needed` is false: a page can be written without them
    only if its cells were (see `check_cells_found`).
    """
    found = {}
    for source in [*data_sources(plan), *method_sources(plan)]:
        try:
            found[source] = _content(source, fetch=needed)
        except MissingError as error:
            if needed:
                raise BadInputError(f"there is no file {source}; the plan names it") from error
    return plan.model_copy(update={"contents": found})


def _content(source: str, *, fetch: bool) -> str:
    """Hash of a model folder's weights, or of a data set's files; MissingError where there is none here."""
    path = source_path(source)
    if (path / "config.json").is_file():
        return weights_sha256(path)
    if not path.exists() and not fetch:
        raise MissingError(f"there is no file {source}")
    return data_sha256(source if path == Path(source) else path)


def check_cells_found(plan: Plan, found: Sequence[object | None], work: Path) -> None:
    """Raise BadInputError where no cell is found and something that the plan names is not here: names of cells hold
    hashes of all of it, so that finished ones would not be found, and the page would wrongly say that there are none.
    """
    named = [source for source in [*data_sources(plan), *method_sources(plan)] if source not in plan.contents]
    absent = [*([plan.model] if plan.weights_sha256 is None else []), *named]
    if absent and not any(item is not None for item in found):
        raise BadInputError(
            f"no finished cell under {work} bears a name that this plan gives without {', '.join(absent[:3])}"
            f"{' and others' if len(absent) > 3 else ''}, not found here: cells are named by what these hold. Run the"
            " command where they are",
            details=absent,
        )


def data_sources(plan: Plan) -> list[str]:
    """What the shared files are made of, sorted."""
    named = {plan.task.file, plan.pool.file, *(file for domain in plan.domains for file in domain.files)}
    return sorted(named | ({plan.evaluation.truthfulqa} if plan.evaluation.truthfulqa is not None else set()))


def method_sources(plan: Plan) -> list[str]:
    """What single methods need besides."""
    named = (plan.steering_vectors, plan.self_recognition_rows, plan.base_model)
    return [source for source in named if source is not None]
