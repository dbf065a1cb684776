"""How a defence's weight changes over the run: one rule, shared by all of them."""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Shape = Literal["constant", "linear", "cosine", "window"]
SYNTAX = "SHAPE[:FIRST[:LAST[:FINAL]]]"


class Schedule(BaseModel):
    """A factor on the weight as a function of the optimiser steps finished so far.

    constant: 1. linear, cosine: 1 up to `first_step`, `final` from `last_step` on, in between along a line or half a
    cosine. window: 1 from `first_step` up to and without `last_step`, and outside of it the defence is switched
    off altogether. `last_step` None stands for the end of the run.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

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
