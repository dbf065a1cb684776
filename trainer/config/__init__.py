"""One frozen configuration of a training run: unknown keys refused, ranges checked before a model is loaded.

`parse_config` makes a `TrainConfig` of plain values, `options` of a command line; `flags` renders the options from the
fields. `defences` and `monitor` have the settings inside it, `rules` what may not be combined.
"""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, field_validator, model_validator

from curator.errors import BadInputError
from curator.recipe.base import Strict
from curator.recipe.problems import problem_line, problems_of
from curator.render.model_source import MODEL_FORMS, model_option
from trainer.config.data import ReadOptions, RenderOptions
from trainer.config.defences import DefenceSettings
from trainer.config.flags import Option
from trainer.config.monitor import MonitorSettings, ReserveSettings
from trainer.config.rules import check_combination

# The seven projections of a Llama-like block (method.md, "Training recipe").
SEVEN_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ALL_LINEAR = "all-linear"
NO_CACHE = "none"  # in the place of a folder of rendered rows

# Where things lie, what is said about them, and what is computed twice to save memory: none of it changes what is
# trained. Contents are compared by hash instead, so a moved model or a service on another port is still the same run.
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
        "gradient_checkpointing",
    }
)


# Trackers that transformers knows; each is also the name of its module (see `tracker_modules`).
_TRACKERS = ("trackio", "tensorboard", "wandb", "mlflow", "comet_ml", "swanlab", "clearml", "dvclive", "neptune")


def tracker_modules(name: str) -> tuple[str, ...]:
    """The modules of which one must be there for a tracker: TensorBoard's files have two writers."""
    return ("tensorboard", "tensorboardX") if name == "tensorboard" else (name,)


def _path_text(value: object) -> object:
    """A path as text: only text may be a hub id."""
    return os.fspath(value) if isinstance(value, os.PathLike) else value


class LoraSettings(Strict):
    """The adapter. `rslora` scales by alpha / sqrt(r) instead of alpha / r."""

    r: int = Field(default=32, ge=1, le=4096, description="rank")
    alpha: float = Field(default=64.0, gt=0.0, description="scale")
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0, description="dropout")
    rslora: Annotated[bool, Option(flag="--no-rslora")] = Field(
        default=True, description="scale by alpha / r instead of alpha / sqrt(r)"
    )
    targets: tuple[str, ...] = Field(
        default=SEVEN_PROJECTIONS, description=f"comma-separated layer names, or {ALL_LINEAR}"
    )

    @field_validator("targets")
    @classmethod
    def _some_targets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or not all(value):
            raise ValueError("name at least one module, or all-linear")
        return value


class SafeLoraSettings(Strict):
    """Projection after training (trainer.defenses.safelora): the model before alignment, and the cosine below which a
    module is projected."""

    base: Annotated[Path, Option("BASE_DIR", flag="--safelora")] = Field(
        description="also write safelora/: the adapter projected onto the difference between --model and this model, "
        "the one before alignment (python -m trainer.defenses.safelora)"
    )
    tau: float = Field(default=0.3, ge=0.0, le=1.0, description="project modules with a cosine below this")


class TrainConfig(ReadOptions, RenderOptions):
    """Everything that decides a run (method.md, "Training recipe"). Rows come from exactly one of mix and data file.

    Units: `lr` per step, `max_length` in tokens, `batch_size` and `grad_accum` in rows and micro-batches (their
    product is the effective batch), `max_steps` in optimiser steps (None: all epochs).
    """

    model: Annotated[Path, Option("MODEL", parse=model_option)] = Field(
        description=f"Hugging Face model to adapt: {MODEL_FORMS}"
    )
    out: Path = Field(description="run folder, for example runs/NAME")
    mix_id: Annotated[str | None, Option("ID")] = Field(default=None, description="train on this mix")
    api_url: Annotated[str | None, Option("URL")] = Field(
        default=None, description="service that the mix is fetched from"
    )
    store: Annotated[str | None, Option("DIR")] = Field(
        default=None, description="or: store of the mix (default: $BALLAST_STORE, else ./store)"
    )
    tenant: str = Field(default="local", description="tenant in the store")
    data: Annotated[str | None, BeforeValidator(_path_text), Option("FILE")] = Field(
        default=None,
        description="or: train on a chat file, a folder that datasets saved or a data set of the hub, in its order",
    )

    epochs: int = Field(default=1, ge=1, le=10_000, description="passes over the rows")
    max_steps: Annotated[int | None, Option(aliases=("--steps",))] = Field(
        default=None, ge=1, description="stop after N steps even if epochs are left"
    )
    batch_size: int = Field(default=4, ge=1, description="rows in one forward pass")
    grad_accum: int = Field(
        default=4, ge=1, description="forward passes in one step; effective batch = batch size x this"
    )
    lr: float = Field(default=1e-4, gt=0.0, le=1.0, description="peak learning rate of AdamW, linear to zero")
    warmup_steps: int = Field(default=5, ge=0, description="steps of linear warm-up; the first step has rate 0")
    weight_decay: float = Field(default=0.01, ge=0.0, description="AdamW weight decay")
    max_grad_norm: float = Field(default=1.0, gt=0.0, description="gradient norm is clipped to this")
    max_length: int = Field(default=2048, ge=2, description="tokens a row is cut to")
    mask_rule: Literal["all", "last"] = Field(
        default="all", description="train every assistant turn (default) or the last"
    )
    allow_masked_rows: bool = Field(
        default=False, description="keep rows without any trained token in place instead of refusing them"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="weights of the frozen model (default auto: bfloat16 where the hardware has it)",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="default auto; CUDA_VISIBLE_DEVICES chooses among several"
    )
    gradient_checkpointing: bool | None = Field(
        default=None,
        description="less memory, about a third slower (default: where the device has less memory than the estimate "
        "without it)",
    )
    seed: int = Field(default=0, ge=0, lt=2**32, description="seed of the adapter's start and of dropout")
    full: bool = Field(
        default=False,
        description="train every weight instead of an adapter; a defence that compares with the model before training "
        "then needs a second, frozen copy of it",
    )
    four_bit: bool = Field(default=False, description="hold the frozen model in 4 bits (NF4); needs bitsandbytes")
    reorder: Literal["shuffle", "group_by_length"] | None = Field(
        default=None,
        description="do not keep the order of the rows: shuffle every epoch, or put rows of like length together",
    )
    save_steps: int | None = Field(
        default=None, ge=1, description="write a checkpoint every N steps (default: only on Ctrl-C)"
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="keep the newest N")
    report_to: tuple[str, ...] = Field(
        default=(), description="send metrics to trackers that are installed, for example trackio or tensorboard"
    )
    cache: Path | None = Field(
        default=None,
        description=f"folder of rendered rows, shared by runs (default: .rendered beside --out); {NO_CACHE}: keep none",
    )
    monitor: MonitorSettings | None = None
    reserve: ReserveSettings | None = None
    lora: LoraSettings = LoraSettings()
    start_adapter: Annotated[Path | None, Option("ADAPTER", parse=model_option)] = Field(
        default=None,
        description="continue this adapter instead of a new one, with its own rank and targets; defences still "
        f"compare with the model without any adapter: {MODEL_FORMS}",
    )
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
        if self.reserve is not None and (self.mix_id is None or self.monitor is None or self.monitor.every is None):
            raise ValueError(
                "reserve holds safe rows of a mix back and is led by the monitor: give --mix-id, --monitor "
                "and --monitor-every N"
            )
        check_combination(self.defences, from_mix=self.mix_id is not None, full=self.full)
        return self

    @property
    def needs_classes(self) -> bool:
        """Whether a defence looks at prefix, query or postfix tokens, which must then be distinguished."""
        return any(defence.needs_classes for defence in self.defences)

    def without_places(self) -> dict[str, Any]:
        """The settings that decide what is trained, without where anything lies."""
        settings = self.model_dump(mode="json", exclude=set(_LOCATIONS) | {"safelora", "reserve"})
        settings["defences"] = [defence.identity() for defence in self.defences]
        if self.reserve is not None and self.monitor is not None:
            settings["reserve"] = self.reserve.model_dump(mode="json") | self.monitor.identity()
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
