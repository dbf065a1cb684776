"""Which checkpoint of a run to keep: the last one before broad drift passes a bound, with the task learnt well enough.

Stopping early by a figure of broad behaviour is published (arXiv 2605.12199); the rule here is ours: at that checkpoint
at least 1 - `share` of the fall of the task's loss over the whole run must be done.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from curator.errors import BadInputError, MissingError
from trainer.monitor.alarm import Predictor, ZScore, read_rule
from trainer.monitor.report import FIELD
from trainer.runs.checkpoints import complete_checkpoints
from trainer.runs.folder import CONFIG, METRICS, RunFolder
from trainer.runs.lines import read_lines
from trainer.runs.report import ends

SHARE = 0.1


@dataclass(frozen=True)
class Kept:
    """The chosen step and why. `broad` is its figure, `passed_at` the first measured step above the bound (None: none).

    `loss` and `loss_end` are means of up to three steps, in nats per token; `done` is the share of the loss's fall.
    """

    step: int
    broad: float
    bound: float
    passed_at: int | None
    loss: float
    loss_end: float
    done: float

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def choose_step(
    steps: Sequence[int], broad: Mapping[int, float], losses: Sequence[float | None], bound: float, share: float = SHARE
) -> Kept:
    """The last of `steps` (those of checkpoints) before `broad`, measured by step, first passes `bound`.

    `losses` are the task's of steps 1, 2, ... in nats per token; None where a step trained no token. Raises
    BadInputError where nothing was measured at a checkpoint, where a figure or a loss is no number, where the first
    measured checkpoint is too late, and where the chosen one has done less than 1 - `share` of the fall of the loss, so
    also where the loss did not fall, unless `share` is 1.
    """
    if not 0 <= share <= 1:
        raise BadInputError(f"the share of the loss's fall that may be missing is {share:g}: give one from 0 to 1")
    if math.isnan(bound):
        raise BadInputError("the bound is not a number: give one")
    if odd := {step: value for step, value in broad.items() if not math.isfinite(value)}:
        raise BadInputError(
            f"the figures of steps {_listed(odd)} are not finite numbers, so that nobody knows whether they pass the "
            "bound: measure these steps again or leave them out"
        )
    passed_at = next((step for step in sorted(broad) if broad[step] > bound), None)
    measured = [step for step in sorted(steps) if step in broad]
    if not measured:
        raise BadInputError(
            f"no checkpoint was measured: checkpoints are of steps {_listed(steps)}, measurements of {_listed(broad)}"
        )
    before = [step for step in measured if passed_at is None or step < passed_at]
    if not before:
        raise BadInputError(
            f"the bound {bound:g} was passed at step {passed_at}, before the first measured checkpoint (step "
            f"{measured[0]}): save and measure more often, or allow more"
        )
    step, whole = before[-1], ends(losses)
    start, end, loss = whole["start"], whole["end"], ends(losses[:step])["end"]
    if start is None or end is None or loss is None:
        raise BadInputError(f"no step up to {step} has a loss in {METRICS}")
    if not all(map(math.isfinite, (start, end, loss))):
        raise BadInputError(f"a loss at the start, up to step {step} or at the end of {METRICS} is not a finite number")
    done = 0.0 if start <= end else max(0.0, (start - loss) / (start - end))
    if start <= end and share < 1:
        raise BadInputError(
            f"the loss did not fall over the run (from {start:.4f} to {end:.4f}), so that no checkpoint has learnt the "
            "task: train with other settings, or go by the figure alone with a share of 1"
        )
    if done < 1 - share:
        raise BadInputError(
            f"the last checkpoint before the bound {bound:g} is of step {step}, where {100 * done:.0f} % of the loss's "
            f"fall from {start:.4f} to {end:.4f} was done: at least {100 * (1 - share):.0f} % must be done"
        )
    return Kept(step, broad[step], bound, passed_at, loss, end, done)


def choose_checkpoint_of(
    run: Path, broad: Mapping[int, float], bound: float, share: float = SHARE
) -> tuple[Path, Kept]:
    """The same for a run folder: the checkpoint's folder, an adapter that loads as it is.

    Raises MissingError where the run has no complete checkpoint.
    """
    checkpoints = {item.step: item.path for item in complete_checkpoints(run)}
    if not checkpoints:
        raise MissingError(
            f"{run} holds no complete checkpoint: train with --save-steps N and with --keep-checkpoints large enough "
            "to keep them all"
        )
    losses = [line.get("sft_loss") for line in read_lines(run / METRICS)]
    kept = choose_step(list(checkpoints), broad, losses, bound, share)
    return checkpoints[kept.step], kept


def drift_by_step(run: Path, alarm: Path | None) -> dict[int, float]:
    """The monitor's figure at each measured step: with a rule's file its predicted EM rate or largest |z|, else the
    largest drift along a trait, in either direction. Raises BadInputError where the run has no measurement, and for a
    rule that was fitted with other directions."""
    found = {int(line["step"]): line[FIELD]["drift"] for line in read_lines(run / METRICS) if FIELD in line}
    if not found:
        raise BadInputError(f"{run} holds no measurement of the monitor: train with --monitor FILE")
    figure = figure_of(None if alarm is None else read_rule(alarm, _directions_id(run)))
    return {step: figure(drift) for step, drift in found.items()}


def _directions_id(run: Path) -> str:
    """Of the directions that a run was measured along; a run without a report names their file."""
    report = RunFolder(run).complete_report()
    if report is not None:
        return str(report[FIELD]["directions_id"])
    from trainer.monitor.directions import load_directions

    settings = orjson.loads((run / CONFIG).read_bytes())["config"][FIELD]
    return load_directions(Path(settings["directions"])).directions_id


def read_figures(path: Path) -> dict[int, float]:
    """A file of other figures, one JSON object a line: `step` and `broad`, the more the worse. Raises BadInputError."""
    try:
        return {int(line["step"]): float(line["broad"]) for line in read_lines(path)}
    except (KeyError, TypeError, ValueError) as error:
        raise BadInputError(f'{path}: write a line {{"step": N, "broad": X}} for each measured checkpoint') from error


def figure_of(rule: Predictor | ZScore | None) -> Callable[[Mapping[str, float]], float]:
    """What makes one figure of a measurement's drift by trait, as `drift_by_step` says."""
    return _largest if rule is None else _judged(rule)


def _largest(drift: Mapping[str, float]) -> float:
    values = [abs(value) for value in drift.values()]
    return math.nan if any(map(math.isnan, values)) else max(values)  # max alone may pass over one


def _judged(rule: Predictor | ZScore) -> Callable[[Mapping[str, float]], float]:
    def figure(drift: Mapping[str, float]) -> float:
        lacking = [trait for trait in rule.traits if trait not in drift]
        if lacking:
            raise BadInputError(f"the run was not measured along {', '.join(lacking)}: the rule has other directions")
        judged = rule.judge(np.array([drift[trait] for trait in rule.traits]))
        return float(judged["predicted_em_rate"] if isinstance(rule, Predictor) else abs(judged["z"]))

    return figure


def _listed(steps: Sequence[int] | Mapping[int, float]) -> str:
    return ", ".join(map(str, sorted(steps))) or "none"
