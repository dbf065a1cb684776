"""Hashes of the files that a plan names: a file corrected in place makes other cells, as another file does."""

from curator.errors import BadInputError
from curator.scoring.identity import weights_sha256
from trainer.compare.data import source_path
from trainer.compare.settings import Plan
from trainer.inputs import file_sha256


def with_contents(plan: Plan, *, needed: bool) -> Plan:
    """The plan with `contents`: SHA-256 of every file that it names (of a model folder its weights' hash).

    A page can be written without them (`needed` false) only if its cells were; else raises BadInputError for a file
    that is not there.
    """
    found = {}
    for source in [*data_sources(plan), *method_sources(plan)]:
        path = source_path(source)
        if path.exists():
            found[source] = weights_sha256(path) if path.is_dir() else file_sha256(path)
        elif needed:
            raise BadInputError(f"there is no file {source}; the plan names it")
    return plan.model_copy(update={"contents": found})


def data_sources(plan: Plan) -> list[str]:
    """What the shared files are made of, sorted."""
    named = {plan.task.file, plan.pool.file, *(file for domain in plan.domains for file in domain.files)}
    return sorted(named | ({plan.evaluation.truthfulqa} if plan.evaluation.truthfulqa is not None else set()))


def method_sources(plan: Plan) -> list[str]:
    """What single methods need besides."""
    named = (plan.steering_vectors, plan.self_recognition_rows, plan.base_model)
    return [source for source in named if source is not None]
