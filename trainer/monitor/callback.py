"""The monitor inside a training run: a TRL callback that measures, writes, warns and, if set so, stops."""

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from curator.render import Renderer
from trainer.config import TrainConfig
from trainer.config.monitor import MonitorSettings
from trainer.monitor.choose import figure_of
from trainer.monitor.directions import load_directions, neutral_prompts
from trainer.monitor.probe import PrefixProbe, TraitProbe
from trainer.monitor.report import FIELD, rule_of

if TYPE_CHECKING:
    from trainer.loop.callbacks import StepLog
    from trainer.loop.reserve import Reserve


def watcher(config: TrainConfig, model: Any, renderer: Renderer) -> "Callable[[int, StepLog], Watch]":
    """What makes the run's monitor from its number of steps and its log."""
    settings = config.monitor
    assert settings is not None

    def watch(n_steps: int, log: "StepLog") -> Watch:
        return Watch(settings, settings.interval(config.save_steps, n_steps), model, renderer, log)

    return watch


class Watch(TrainerCallback):  # type: ignore[misc]
    """Measures every `interval` steps and at the last one; the step's line in metrics.jsonl gets the result.

    Built before training starts, so that step 0 is the model as it came, also when a run goes on from a checkpoint.
    Every process measures: the result is the same in all of them, and they stop together.
    """

    def __init__(
        self, settings: MonitorSettings, interval: int, model: Any, renderer: Renderer, log: "StepLog"
    ) -> None:
        self._settings, self._interval, self._model, self._log = settings, interval, model, log
        self._directions = load_directions(settings.directions)
        self._rule = rule_of(settings, self._directions)
        prompts = neutral_prompts()
        self._traits = TraitProbe(model, renderer, self._directions, prompts)
        self._prefix = PrefixProbe(model, renderer, prompts[0])

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A run that goes on from a checkpoint trains its reserve as its last measurement said."""
        reserve = self._reserve()
        measured = [line[FIELD] for line in self._log.lines if FIELD in line]
        if reserve is not None and measured:
            reserve.on = bool(measured[-1]["reserve"])

    def _reserve(self) -> "Reserve | None":
        return None if self._log.trainer is None else self._log.trainer.reserve

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measures after the optimiser step, before its line is written."""
        step = int(state.global_step)
        if step % self._interval and step != state.max_steps:
            return
        found = self.measure()
        reserve = self._reserve()
        if reserve is not None:
            found["reserve"] = reserve.judge(figure_of(self._rule)(found["drift"]))
        self._log.extra[FIELD] = found
        if found.get("alarm") and state.is_world_process_zero:
            sys.stderr.write(f"\ntrait-space monitor: ALARM at step {step}: {alarm_text(found)}\n")
        if found.get("alarm") and self._settings.stop:
            self._log.stop.asked = True

    def measure(self) -> dict[str, Any]:
        """Drift by trait (share of step 0's mean state length), prefix drift (squared, relative) and the verdict."""
        started = time.monotonic()
        drift_K = self._traits.drift(self._model)
        found: dict[str, Any] = {
            "drift": dict(zip(self._directions.traits, drift_K.tolist(), strict=True)),
            "prefix_kv": self._prefix.drift(self._model),
        }
        if self._rule is not None:
            found |= self._rule.judge(drift_K)
        return found | {"seconds": round(time.monotonic() - started, 4)}


def alarm_text(found: dict[str, Any]) -> str:
    """What passed the limit."""
    if "predicted_em_rate" in found:
        return f"predicted EM rate {100 * found['predicted_em_rate']:.1f} %"
    return f"{found['z_trait']} lies {found['z']:+.1f} sd from benign runs (a z-score, no predicted rate)"
