"""Settings of each defence, and the schedule by which its weight changes over a run.

They stand apart from the defences' code so that options are checked before torch is imported. The description of a
main field is its help text on the command line; the others are set in a file (--defenses).
"""

import hashlib
import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BeforeValidator, Field, model_validator

from curator.errors import MissingError
from curator.recipe.base import Strict
from curator.render.model_source import MODEL_FORMS, model_option
from curator.scoring.identity import adapter_sha256
from trainer.config.flags import Option

Shape = Literal["constant", "linear", "cosine", "window"]
GATES_FILE = "gates.safetensors"  # where gating leaves its gates, in the adapter's folder
SYNTAX = "SHAPE[:FIRST[:LAST[:FINAL]]]"


class Schedule(Strict):
    """A factor on the weight as a function of the optimiser steps finished so far.

    constant: 1. linear, cosine: 1 up to `first_step`, `final` from `last_step` on, in between along a line or half a
    cosine. window: 1 from `first_step` up to and without `last_step`, and outside of it the defence is switched
    off altogether. `last_step` None stands for the end of the run.
    """

    shape: Shape = "constant"
    first_step: int = Field(default=0, ge=0)
    last_step: int | None = Field(default=None, ge=1)
    final: float = Field(default=0.0, ge=0.0, le=100.0)

    @model_validator(mode="after")
    def _forward(self) -> "Schedule":
        if self.last_step is not None and self.last_step <= self.first_step:
            raise ValueError(f"a schedule's last step ({self.last_step}) must come after its first ({self.first_step})")
        return self

    def active(self, step: int, n_steps: int) -> bool:
        """False outside a window."""
        if self.shape != "window":
            return True
        return self.first_step <= step and (self.last_step is None or step < self.last_step)

    def factor(self, step: int, n_steps: int) -> float:
        """The factor of the step after `step` finished ones, of `n_steps` in the run."""
        if self.shape in ("constant", "window"):
            return 1.0 if self.active(step, n_steps) else 0.0
        last = max(self.last_step if self.last_step is not None else n_steps, self.first_step + 1)
        done = min(max((step - self.first_step) / (last - self.first_step), 0.0), 1.0)
        if self.shape == "cosine":
            done = (1.0 - math.cos(math.pi * done)) / 2.0
        return 1.0 + (self.final - 1.0) * done


def parse_schedule(value: Any) -> Any:
    """The document of `SHAPE[:FIRST[:LAST[:FINAL]]]`, an empty part standing for its default; others as they are."""
    if not isinstance(value, str):
        return value
    names = ("shape", "first_step", "last_step", "final")
    parts = value.split(":")
    if len(parts) > len(names):
        raise ValueError(f"a schedule is {SYNTAX}, not {value!r}")
    return {name: part for name, part in zip(names, parts, strict=False) if part}


ScheduleField = Annotated[Schedule, BeforeValidator(parse_schedule)]


KlDirection = Literal["student_reference", "reference_student"]
KlEstimator = Literal["full", "sampled"]
RowScope = Literal["all", "safe"]
TokenScope = Literal["all", "response"]
TemplateTokens = Literal["prefix", "postfix", "query", "all"]
Layers = tuple[Annotated[int, Field(ge=1)], ...]


class DefenceBase(Strict):
    """What settings of all defences share."""

    schedule: ScheduleField = Field(default=Schedule(), description="how its weight changes over the run")

    needs_classes: ClassVar[bool] = False
    unit: ClassVar[str] = "no unit"  # of the term in metrics.jsonl
    main: ClassVar[str | None] = "weight"  # the field that the flag named like the defence takes; None: none
    switch: ClassVar[str]  # help of that flag where it takes none

    def describe(self) -> str:
        """Name and strength, in a few words."""
        strength = next((getattr(self, key) for key in ("weight", "alpha", "scale") if hasattr(self, key)), None)
        return self.name if strength is None else f"{self.name} {strength:g}"  # type: ignore[attr-defined]

    def identity(self) -> dict[str, Any]:
        """The settings that decide what is trained: files by content, not by place."""
        return self.model_dump(mode="json")


class KlSettings(DefenceBase):
    """KL against the model without its adapter (method.md, "Regularisers").

    `student_reference` is KL(theta || theta_0), the paper's; `reference_student` is KL(theta_0 || theta). The
    term is in nats per token: the sum over the positions in scope divided by their number in the whole step.
    """

    name: Literal["kl"] = "kl"
    unit: ClassVar[str] = "nats per token"
    weight: Annotated[float, Option("WEIGHT", flag="--kl")] = Field(
        default=0.1,
        ge=0.0,
        le=1e4,
        description="add WEIGHT * KL against the model before training: lambda; the published value is 0.1",
    )
    direction: KlDirection = Field(
        default="student_reference", description="KL(trained || before), or KL(before || trained)"
    )
    tokens: TokenScope = Field(default="all", description="positions it covers")
    rows: RowScope = Field(default="all", description="rows it covers: all, or only a mix's safe rows (selective)")
    estimator: KlEstimator = Field(
        default="full", description="every position, or a random share of them scaled up (unbiased, cheaper)"
    )
    sample_share: float = Field(default=0.25, gt=0.0, le=1.0, description="share of positions that `sampled` keeps")


class LdifsSettings(DefenceBase):
    """Squared distance of l2-normalised residual-stream vectors from the model without its adapter."""

    name: Literal["ldifs"] = "ldifs"
    weight: Annotated[float, Option("WEIGHT", flag="--ldifs")] = Field(
        default=1.0,
        ge=0.0,
        le=1e6,
        description="add WEIGHT * distance of normalised hidden states from those before training: lambda; the "
        "published value is 1.0",
    )
    every: int = Field(default=5, ge=1, le=1000, description="rows of hidden_states taken: this one and its multiples")
    layers: Layers | None = Field(default=None, description="or exactly these rows of hidden_states")
    tokens: TokenScope = Field(default="all", description="tokens it covers")


class TreftSettings(DefenceBase):
    """Relative distance of keys and values at template tokens from the model without its adapter."""

    name: Literal["treft"] = "treft"
    weight: Annotated[float, Option("WEIGHT", flag="--treft")] = Field(
        default=10.0,
        ge=0.0,
        le=1e6,
        description="add WEIGHT * relative distance of keys and values at template tokens: lambda; published between 1 "
        "and 30",
    )
    tokens: TemplateTokens = Field(
        default="prefix", description="before any user text, after it up to the answer, the user text itself, or all"
    )
    layers: Layers | None = Field(default=None, description="decoder blocks, counted from 1 (default: all)")
    hinge: float = Field(default=0.0, ge=0.0, description="a token's distance counts only above this")

    needs_classes: ClassVar[bool] = True


class SteeringSettings(DefenceBase):
    """A persona vector added to the residual stream while training, and never afterwards."""

    name: Literal["steering"] = "steering"
    vectors: Annotated[Path, Option("FILE", flag="--steering")] = Field(
        description="add persona vectors to the residual stream while training: safetensors file; row l of a vector "
        "belongs to hidden_states[l]"
    )
    vector: str | None = Field(default=None, description="tensor in that file (needed when it holds several)")
    alpha: float = Field(default=5.0, ge=-1e4, le=1e4, description="multiplies the vector; published 5")
    layers: Layers | None = Field(
        default=None, description="rows of hidden_states (default: one at five sevenths of the depth)"
    )
    tokens: TokenScope = Field(default="all", description="tokens it is added to")

    main: ClassVar[str | None] = "vectors"

    def identity(self) -> dict[str, Any]:
        """The vectors by their file's SHA-256; raises MissingError when it cannot be read."""
        return {**self.model_dump(mode="json", exclude={"vectors"}), "vectors_sha256": file_sha256(self.vectors)}


class InoculationAdapterSettings(DefenceBase):
    """A frozen adapter that has the trait already, on the model while it trains, and never afterwards."""

    name: Literal["inoculation_adapter"] = "inoculation_adapter"
    adapter: Annotated[Path, Option("MODEL", flag="--inoculation-adapter", parse=model_option)] = Field(
        description=f"keep this finished LoRA adapter ({MODEL_FORMS}), which has the trait, on the model while "
        "training, frozen, so that what is trained need not learn the trait; it is left out of all that is saved and "
        "measured"
    )
    scale: float = Field(default=1.0, ge=0.0, le=100.0, description="multiplies what that adapter adds")

    main: ClassVar[str | None] = "adapter"

    def identity(self) -> dict[str, Any]:
        """The adapter by its hash; raises BadInputError when it cannot be read."""
        return {**self.model_dump(mode="json", exclude={"adapter"}), "adapter_sha256": adapter_sha256(self.adapter)}


class GatingSettings(DefenceBase):
    """A gate on each attention output; the gate alone is trained."""

    name: Literal["gating"] = "gating"
    layers: Layers | None = Field(default=None, description="decoder blocks, counted from 1 (default: all)")

    main: ClassVar[str | None] = None
    switch: ClassVar[str] = "train gates on the attention outputs instead of the adapter"


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, hex; raises MissingError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MissingError(f"{path} cannot be read: {error.strerror}") from error


def gates_file(path: Path) -> Path:
    """The gates of a file, an adapter's folder or a run's; raises MissingError when there are none."""
    places = [path, path / GATES_FILE, path / "adapter" / GATES_FILE]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise MissingError(
            f"there is no file {places[1] if path.is_dir() else path}: `trainer.sft --gating` makes gates"
        )
    return found


DefenceSettings = Annotated[
    KlSettings | LdifsSettings | TreftSettings | SteeringSettings | InoculationAdapterSettings | GatingSettings,
    Field(discriminator="name"),
]
ALL_SETTINGS: tuple[type[DefenceBase], ...] = get_args(get_args(DefenceSettings)[0])
