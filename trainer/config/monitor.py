"""Settings of the monitor in a training run, and of the rows that it leads; torch is not needed to check them."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from curator.recipe.base import Strict
from trainer.config.defences import file_sha256
from trainer.config.flags import Option


class MonitorSettings(Strict):
    """Nothing of it changes what is trained, except that `stop` may end the run early."""

    # torchrun and accelerate take --monitor for the beginning of an option of theirs: the longer name serves there.
    directions: Annotated[Path, Option("FILE", flag="--monitor", aliases=("--monitor-directions",))] = Field(
        description="directions of `python -m trainer.monitor directions`: measures drift along them while training, "
        "and that of keys and values on the template's prefix"
    )
    alarm: Annotated[Path | None, Option("FILE")] = Field(
        default=None,
        description="rule of `python -m trainer.monitor fit`; without it drift is recorded and not judged",
    )
    every: int | None = Field(
        default=None,
        ge=1,
        description="steps between measurements (default: those of --save-steps, or a tenth of the run); and the last "
        "step",
    )
    stop: bool = Field(default=False, description="stop at the first alarm, as Ctrl-C would")

    def identity(self) -> dict[str, Any]:
        """What decides which rows a reserve trains: when is measured and along what, files by content."""
        files = {"directions": self.directions, "alarm": self.alarm}
        found = {f"{name}_sha256": None if path is None else file_sha256(path) for name, path in files.items()}
        return {"every": self.every, **found}

    def interval(self, save_steps: int | None, n_steps: int) -> int:
        """Steps between two measurements: as asked, else those of checkpoints, else a tenth of the run."""
        return self.every or save_steps or max(1, n_steps // 10)


class ReserveSettings(Strict):
    """Safe rows of a mix that are trained only while drift is high: more safe rows for each step where it rises."""

    share: Annotated[float, Option("SHARE", flag="--reserve")] = Field(
        gt=0.0,
        le=1.0,
        description="hold this share of a mix's safe rows back, in their places: without loss, except while the drift "
        "that --monitor measured last is above --reserve-bound",
    )
    bound: float = Field(
        ge=0.0,
        description="bound on the largest trait drift; with --monitor-alarm on the rule's predicted EM rate or |z|",
    )
