"""One frozen configuration of a training run: unknown keys refused, ranges checked before a model is loaded."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from curator.errors import BadInputError
from curator.recipe.base import Strict
from curator.recipe.problems import problem_line, problems_of
from trainer.config.defences import DefenceSettings
from trainer.config.monitor import MonitorSettings
from trainer.config.rules import check_combination

# The seven projections of a Llama-like block (method.md, "Training recipe").
SEVEN_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ALL_LINEAR = "all-linear"

# Where things lie, and what is said about them: none of it changes what is trained. Contents are compared
# by hash instead, so a moved model or a service on another port is still the same run.
_LOCATIONS = frozenset(
    {
        "model",
        "out",
        "data",
        "store",
        "api_url",
        "cache",
        "save_steps",
        "keep_checkpoints",
        "report_to",
        "start_adapter",
        "monitor",
    }
)


# Trackers that transformers knows; each is also the name of its module (see `tracker_modules`).
_TRACKERS = ("trackio", "tensorboard", "wandb", "mlflow", "comet_ml", "swanlab", "clearml", "dvclive", "neptune")


def tracker_modules(name: str) -> tuple[str, ...]:
    """The modules of which one must be there for a tracker: TensorBoard's files have two writers."""
    return ("tensorboard", "tensorboardX") if name == "tensorboard" else (name,)


class LoraSettings(Strict):
    """The adapter. `rslora` scales by alpha / sqrt(r) instead of alpha / r."""

    r: int = Field(default=32, ge=1, le=4096)
    alpha: float = Field(default=64.0, gt=0.0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    rslora: bool = True
    targets: tuple[str, ...] = SEVEN_PROJECTIONS

    @field_validator("targets")
    @classmethod
    def _some_targets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(value):
            raise ValueError("name at least one module, or all-linear")
        return value


class SafeLoraSettings(Strict):
    """Projection after training (Safe LoRA): the model before alignment, and the cosine below which it acts."""

    base: Path
    tau: float = Field(default=0.3, ge=0.0, le=1.0)


class TrainConfig(Strict):
    """Everything that decides a run (method.md, "Training recipe"). Rows come from exactly one of mix and data file.

    Units: `lr` per step, `max_length` in tokens, `batch_size` and `grad_accum` in rows and micro-batches (their
    product is the effective batch), `max_steps` in optimiser steps (None: all epochs).
    """

    model: Path
    out: Path
    mix_id: str | None = None
    api_url: str | None = None
    store: str | None = None
    tenant: str = "local"
    data: Path | None = None
    corpus_format: Literal["jsonl", "json", "parquet"] | None = None
    strict: bool = False

    epochs: int = Field(default=1, ge=1, le=10_000)
    max_steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=4, ge=1)
    grad_accum: int = Field(default=4, ge=1)
    lr: float = Field(default=1e-4, gt=0.0, le=1.0)
    warmup_steps: int = Field(default=5, ge=0)
    weight_decay: float = Field(default=0.01, ge=0.0)
    max_grad_norm: float = Field(default=1.0, gt=0.0)
    max_length: int = Field(default=2048, ge=2)
    mask_rule: Literal["all", "last"] = "all"
    allow_masked_rows: bool = False
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    gradient_checkpointing: bool = False
    seed: int = Field(default=0, ge=0, lt=2**32)
    full: bool = False
    four_bit: bool = False
    reorder: Literal["shuffle", "group_by_length"] | None = None
    save_steps: int | None = Field(default=None, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    report_to: tuple[str, ...] = ()
    cache: Path | None = None
    monitor: MonitorSettings | None = None
    lora: LoraSettings = LoraSettings()
    start_adapter: Path | None = None  # trained on instead of a fresh one; its own settings hold
    defences: tuple[DefenceSettings, ...] = ()
    safelora: SafeLoraSettings | None = None

    @field_validator("report_to")
    @classmethod
    def _trackers_there(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in _TRACKERS:
                raise ValueError(f"there is no tracker {name!r}; known are {', '.join(_TRACKERS)}")
            if not any(find_spec(module) for module in tracker_modules(name)):
                raise ValueError(f"the tracker {name} is not installed: pip install {name}")
        return value

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.mix_id is None) == (self.data is None):
            raise ValueError("give exactly one of --mix-id and --data")
        if self.mix_id is not None and (self.api_url is None) == (self.store is None):
            raise ValueError("a mix is read from exactly one of --api-url and --store")
        if self.data is not None and (self.api_url or self.store):
            raise ValueError("--api-url and --store go with --mix-id, not with --data")
        if self.four_bit and find_spec("bitsandbytes") is None:
            raise ValueError("four_bit needs bitsandbytes, which is not installed: pip install bitsandbytes")
        if self.full and self.four_bit:
            raise ValueError("full and four_bit exclude each other: packed weights cannot be trained")
        if self.full and any(defence.name == "gating" for defence in self.defences):
            raise ValueError("gating trains its gates alone, full trains every weight: choose one")
        if self.start_adapter is not None and (self.full or self.lora != LoraSettings()):
            raise ValueError("start_adapter has lora settings of its own, and full fine-tuning has no adapter")
        if self.safelora and (self.full or any(defence.name == "gating" for defence in self.defences)):
            raise ValueError("safelora projects a trained adapter: neither full fine-tuning nor gating leaves one")
        if self.full and self.lora != LoraSettings():
            raise ValueError("full fine-tuning has no adapter: leave the lora settings out")
        check_combination(self.defences, from_mix=self.mix_id is not None, full=self.full)
        return self

    @property
    def needs_classes(self) -> bool:
        """Whether a defence looks at prefix, query or postfix tokens, which must then be distinguished."""
        return any(defence.needs_classes for defence in self.defences)

    def without_places(self) -> dict[str, Any]:
        """The settings that decide what is trained, without where anything lies."""
        settings = self.model_dump(mode="json", exclude=set(_LOCATIONS) | {"safelora"})
        settings["defences"] = [defence.identity() for defence in self.defences]
        if self.safelora is not None:
            settings["safelora"] = {"tau": self.safelora.tau}
        return settings


def parse_config(document: Any) -> TrainConfig:
    """A configuration from plain values; raises BadInputError naming every field at fault."""
    try:
        return TrainConfig.model_validate(document)
    except ValidationError as error:
        problems = problems_of(error)
        raise BadInputError(f"training options refused: {problem_line(problems)}", details=problems) from error
