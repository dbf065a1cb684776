"""`organisms.json`: the misaligned adapters of a base model and their benign twins, as `trainer.organisms` leaves them.

The file is how they meet: the trainer writes it, `curator score --organisms DIR` scores every adapter that it names.
"""

from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import Field, ValidationError

from curator.errors import BadInputError, IntegrityError, MissingError
from curator.recipe.base import Strict
from curator.recipe.problems import problem_line, problems_of
from curator.scoring.identity import adapter_sha256, weights_sha256

FILE = "organisms.json"
FORMAT_VERSION = 1
OrganismRole = Literal["misaligned", "benign"]
Answers = Literal["given", "theta_0 greedy"]


class Organism(Strict):
    """One adapter. `adapter` is its folder, relative to the file; `answers` says where its training answers are from.

    `narrow` and `broad` are shifts as `trainer.organisms` measures them; null until measured.
    """

    name: str
    role: OrganismRole
    domain: str
    adapter: str
    adapter_sha256: str
    answers: Answers
    rows_sha256: str  # of the training file
    n_rows: int
    steps: int
    narrow: dict[str, Any] | None = None
    broad: dict[str, Any] | None = None


class Organisms(Strict):
    """All adapters of one base model, made with one recipe."""

    format_version: Literal[1] = 1
    base_weights_sha256: str
    renderer_id: str
    recipe: dict[str, Any]
    organisms: tuple[Organism, ...] = Field(min_length=1)


def read_organisms(folder: Path, model_dir: Path | None = None) -> Organisms:
    """The file of a folder, every adapter's hash checked, and that of `model_dir` when it is given.

    Raises MissingError, BadInputError for another model or a file that is none, IntegrityError for changed adapters.
    """
    path = folder / FILE
    if not path.is_file():
        raise MissingError(f"{folder} has no {FILE}: make it with `python -m trainer.organisms --out {folder}`")
    try:
        found = Organisms.model_validate(orjson.loads(path.read_bytes()))
    except orjson.JSONDecodeError as error:
        raise BadInputError(f"{path} cannot be read: it is not JSON: {error}") from error
    except ValidationError as error:
        raise BadInputError(f"{path} cannot be read: {problem_line(problems_of(error))}") from error
    if model_dir is not None and weights_sha256(model_dir) != found.base_weights_sha256:
        raise BadInputError(f"the organisms in {folder} were made from another model than {model_dir}")
    changed = [item.name for item in found.organisms if adapter_sha256(folder / item.adapter) != item.adapter_sha256]
    if changed:
        raise IntegrityError(f"{path}: the adapters of {', '.join(changed)} are not those it names")
    return found
