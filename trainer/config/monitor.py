"""Options of the monitor in a training run; torch is not needed to check them."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from curator.errors import BadInputError
from curator.recipe.base import Strict


class MonitorSettings(Strict):
    """Nothing of it changes what is trained, except that `stop` may end the run early."""

    directions: Path
    alarm: Path | None = None
    every: int | None = Field(default=None, ge=1)
    stop: bool = False

    def interval(self, save_steps: int | None, n_steps: int) -> int:
        """Steps between two measurements: as asked, else those of checkpoints, else a tenth of the run."""
        return self.every or save_steps or max(1, n_steps // 10)


def add_monitor_options(parser: argparse.ArgumentParser) -> None:
    """The options, each described once."""
    group = parser.add_argument_group("trait-space monitor (docs/persona.md)")
    add = group.add_argument
    # torchrun and accelerate take --monitor for the beginning of an option of theirs: the longer name serves there.
    add(
        "--monitor",
        "--monitor-directions",
        type=Path,
        metavar="FILE",
        help="directions of `python -m trainer.monitor directions`: measures drift along them while training, and that "
        "of keys and values on the template's prefix",
    )
    add(
        "--monitor-every",
        type=int,
        metavar="N",
        help="steps between measurements (default: those of --save-steps, or a tenth of the run); and the last step",
    )
    add(
        "--monitor-alarm",
        type=Path,
        metavar="FILE",
        help="rule of `python -m trainer.monitor fit`; without one drift is written down, nothing is judged",
    )
    add("--monitor-stop", action="store_true", default=None, help="stop at the first alarm, as Ctrl-C would")


def monitor_document(given: Mapping[str, Any]) -> dict[str, Any] | None:
    """The settings among parsed options; None when the monitor is not requested.

    Raises BadInputError for its options without --monitor.
    """
    names = {"monitor": "directions", "monitor_alarm": "alarm", "monitor_every": "every", "monitor_stop": "stop"}
    found = {field: given[name] for name, field in names.items() if name in given}
    if found and "directions" not in found:
        raise BadInputError("--monitor-every, --monitor-alarm and --monitor-stop belong to --monitor FILE: give it")
    return found or None
