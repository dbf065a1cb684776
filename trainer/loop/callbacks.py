"""What happens after each step: one line of metrics, progress on stderr, and a clean stop when asked."""

import math
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import orjson
from transformers import TrainerCallback

from curator.console import Progress
from curator.errors import BallastError
from trainer.loop.trainer import LOSS, SFT_LOSS, BallastTrainer


class DivergedError(BallastError, ArithmeticError):
    """The loss is no longer a number; going on would only write a broken adapter."""

    code = "diverged"


class StopRequest:
    """Set by Ctrl-C: training ends after the step at hand."""

    def __init__(self) -> None:
        self.asked = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """First Ctrl-C asks for a stop, the second interrupts at once. Only a main thread can listen."""
        try:
            before = signal.signal(signal.SIGINT, self._on_signal)
        except ValueError:
            yield
            return
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        sys.stderr.write("\nstopping after this step; Ctrl-C again stops at once\n")


class StepLog(TrainerCallback):  # type: ignore[misc]
    """Writes metrics.jsonl, one line a step, and moves the progress bar.

    A line: step (1-based), loss, sft_loss, each term (nats per token, unweighted), lr, grad_norm, tokens
    (response tokens trained in the step), total_tokens (real tokens fed), rows, seconds, cpu_seconds (of this process).
    A step of rows without a trained token has no SFT loss: null, not 0.
    """

    def __init__(self, path: Path, progress: Progress, stop: StopRequest, start: int = 0) -> None:
        self.path, self.progress, self.stop, self.start = path, progress, stop, start
        self.lines: list[dict[str, Any]] = []
        self.trainer: BallastTrainer | None = None
        self.extra: dict[str, Any] = {}  # what other callbacks found after the step at hand
        self._lr = self._started = self._cpu_started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock and the file: empty, or with the lines up to the checkpoint that the run goes on from."""
        self.lines = _lines_until(self.path, self.start)
        if state.is_world_process_zero:
            self.path.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in self.lines))
        self.progress.advance(len(self.lines))
        self._started, self._cpu_started = time.monotonic(), time.process_time()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Keeps the learning rate that this step uses; afterwards the scheduler has moved on."""
        self._lr = float(kwargs["optimizer"].param_groups[0]["lr"])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """One line after each step, flushed, so that a killed run keeps what it measured."""
        if self.trainer is None or "grad_norm" not in (logs or {}):  # the summary after the last step
            return
        line = self._line(self.trainer, int(state.global_step), float(logs["grad_norm"]))
        line |= self.extra
        self.extra = {}
        self.lines.append(line)
        if state.is_world_process_zero:
            with self.path.open("ab") as file:
                file.write(orjson.dumps(line) + b"\n")
        loss = line[LOSS]
        self.progress.advance(1, loss="none" if loss is None else f"{loss:.4f}")
        if loss is not None and not math.isfinite(loss):
            raise DivergedError(
                f"the loss is {loss} at step {state.global_step}: lower --lr or the weight of a defence"
            )
        if self.trainer.any_process(self.stop.asked):
            self.stop.asked = control.should_training_stop = control.should_save = True

    def _line(self, trainer: BallastTrainer, step: int, grad_norm: float) -> dict[str, Any]:
        parts, counts = trainer.parts, trainer.counts
        now, cpu_now = time.monotonic(), time.process_time()
        seconds, self._started = now - self._started, now
        cpu_seconds, self._cpu_started = cpu_now - self._cpu_started, cpu_now
        return {
            "step": step,
            **parts_of_step(parts, counts.n_response),
            "lr": self._lr,
            "grad_norm": grad_norm,
            "tokens": counts.n_response,
            "total_tokens": counts.n_predicted + counts.n_rows,
            "rows": counts.n_rows,
            "seconds": round(seconds, 4),
            "cpu_seconds": round(cpu_seconds, 4),
        }


def parts_of_step(parts: dict[str, float], n_response: int) -> dict[str, float | None]:
    """A step's parts as they are recorded: without a trained token there is no SFT loss, and without terms no loss."""
    if n_response:
        return dict(parts)
    terms = parts.keys() - {LOSS, SFT_LOSS}
    absent = {SFT_LOSS} if terms else {LOSS, SFT_LOSS}
    return {name: None if name in absent else value for name, value in parts.items()}


def _lines_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl up to a step; a kill may have cut the last one."""
    if not step:
        return []
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return [line for line in map(orjson.loads, whole) if line["step"] <= step]
