"""One command of the product as a step of a cell: its output in a log, its time and memory on the record."""

import os
import shlex
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from curator.errors import BallastError
from trainer.experiments.peaked import peak_mib, peaked

TAIL = 400  # characters of a failed command's log that its error shows


class StepError(BallastError, RuntimeError):
    """A command of a cell failed; the message shows the end of its log."""

    code = "step_failed"


@dataclass(frozen=True)
class Spent:
    """Wall-clock seconds, processor seconds and the process's peak resident memory (MiB) of one command."""

    wall_s: float
    cpu_s: float
    peak_mib: float


@dataclass
class Steps:
    """Runs commands for one folder. `lock` is handed to each child (see trainer.experiments.claims)."""

    log: Path
    threads: int | None = None
    lock: int | None = None
    commands: list[str] = field(default_factory=list)

    def run(self, module: str, *arguments: object) -> tuple[Any, Spent]:
        """The JSON that the command printed (with --json among its arguments), or None, and what it cost.

        Raises StepError when it fails.
        """
        words = [str(item) for item in arguments]
        self.commands.append(shlex.join(["python", "-m", module, *words]))
        self.log.parent.mkdir(parents=True, exist_ok=True)
        out, peak = self.log.with_suffix(".out"), self.log.with_suffix(".peak")
        started = time.monotonic()
        with self.log.open("ab") as log, out.open("wb") as stdout:
            log.write(f"$ {self.commands[-1]}\n".encode())
            log.flush()
            process = subprocess.Popen(
                peaked(peak, module, *words), stdout=stdout, stderr=log, env=self._environment(),
                pass_fds=() if self.lock is None else (self.lock,),
            )  # fmt: skip
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.monotonic() - started
        if process.returncode != 0:
            peak.unlink(missing_ok=True)
            raise StepError(
                f"`python -m {module}` ended with {process.returncode}: {_tail(self.log)} (log: {self.log})"
            )
        spent = Spent(wall_s, usage.ru_utime + usage.ru_stime, peak_mib(peak))
        text = out.read_bytes()
        out.unlink()
        return (orjson.loads(text) if "--json" in words else None), spent

    def _environment(self) -> dict[str, str]:
        # Threads that wait sleep: spinning ones starve each other where cores are shared (see trainer.sft).
        found = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        return found if self.threads is None else found | {"OMP_NUM_THREADS": str(self.threads)}


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors[-1] if errors else "\n".join(lines))[-TAIL:]


def flags(options: dict[str, Any]) -> Sequence[object]:
    """`{"max_steps": 5, "epochs": None}` as `--max-steps 5`: nulls are left out."""
    return [
        word for name, value in options.items() if value is not None for word in (f"--{name.replace('_', '-')}", value)
    ]
