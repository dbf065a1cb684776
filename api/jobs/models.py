"""Models that fine-tuning jobs may name: a file of the operator, read by the service and by workers that train."""

from collections.abc import Mapping
from math import ceil
from pathlib import Path
from typing import Any

from pydantic import Field

from curator.errors import BadInputError
from curator.recipe.base import CorpusName, Strict
from curator.recipe.document import parse_document, read_document

KEPT_CHECKPOINTS = 3
_OWN_OPTIONS = ("out", "mix_id", "api_url", "api_key", "store", "tenant", "data", "json", "overwrite", "resume", "seed")


class TrainedModel(Strict):
    """A model that jobs may name, and what `auto` means for it. Fields are options of `python -m trainer.sft`:
    `lr` per step, `batch_size` in rows of one forward pass, `grad_accum` in forward passes of one step."""

    model: str = Field(min_length=1, max_length=1_000)
    epochs: int = Field(ge=1, le=50)
    lr: float = Field(gt=0.0, le=1.0)
    batch_size: int = Field(ge=1, le=65_536)
    grad_accum: int = Field(ge=1, le=65_536)
    options: dict[str, Any] = Field(default_factory=dict)

    def chosen(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """The hyperparameters of a job, each `auto` or absent one as this model has it; `batch_size` in rows of a
        step. Raises BadInputError for a learning rate over 1."""
        usual = {
            "n_epochs": self.epochs,
            "batch_size": self.batch_size * self.grad_accum,
            "learning_rate_multiplier": 1.0,
        }
        found = {name: value if asked.get(name, "auto") == "auto" else asked[name] for name, value in usual.items()}
        if self.lr * found["learning_rate_multiplier"] > 1.0:
            raise BadInputError(f"learning_rate_multiplier: the learning rate {self.lr:g} times it is over 1")
        return found

    def settings(self, chosen: Mapping[str, Any], n_rows: int) -> dict[str, Any]:
        """Options of a run over `n_rows` rows: the rows of a step in equal forward passes of at most `batch_size`, and
        a checkpoint at the end of each epoch."""
        rows = int(chosen["batch_size"])
        batch_size = next(n for n in range(min(self.batch_size, rows), 0, -1) if rows % n == 0)
        usual = {
            "save_steps": ceil(ceil(n_rows / batch_size) / (rows // batch_size)),
            "keep_checkpoints": KEPT_CHECKPOINTS,
            "cache": "none",
        }
        return {
            **usual,
            **self.options,
            "model": self.model,
            "epochs": chosen["n_epochs"],
            "lr": self.lr * chosen["learning_rate_multiplier"],
            "batch_size": batch_size,
            "grad_accum": rows // batch_size,
        }


class TrainedModels(Strict):
    """The file of models by the names that jobs give."""

    models: dict[CorpusName, TrainedModel] = Field(min_length=1)


def read_models(path: str) -> dict[str, TrainedModel]:
    """The models of a file; raises MissingError without it, BadInputError for what is none."""
    document = read_document(Path(path), "models")
    found = parse_document(TrainedModels, {"models": document}, f"models file {path}").models
    for name, model in found.items():
        own = sorted(set(model.options) & {*_OWN_OPTIONS, *TrainedModel.model_fields})
        if own:
            raise BadInputError(f"models file {path}: option {own[0]} of model {name} is set by the service: remove it")
    return found
