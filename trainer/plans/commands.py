"""The product's own commands, each in a process of its own: its output, its exit code, its time and memory."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import orjson

from curator.console import as_typed, say
from curator.errors import BallastError
from trainer.plans.peaked import peak_mib, peaked

TAIL = 400  # characters of a failed command's log that its error shows
BAD_INPUT = 2  # exit code of a command that has said in one line what it cannot use
STOPPED = 130  # exit code of a command that Ctrl-C stopped


class CommandError(BallastError, RuntimeError):
    """A command failed; the message shows the end of its log, where it has one."""

    code = "command_failed"


@dataclass(frozen=True)
class Spent:
    """Wall-clock seconds, processor seconds and the process's peak resident memory (MiB) of one command."""

    wall_s: float
    cpu_s: float
    peak_mib: float


@dataclass
class Commands:
    """Runs commands one after the other and keeps what they were.

    With a `log` their messages go into that file; without one each is shown as a reader would type it and speaks to
    the screen. `lock` is handed to each child (see trainer.experiments.claims).
    """

    log: Path | None = None
    threads: int | None = None
    lock: int | None = None
    commands: list[str] = field(default_factory=list)

    def run(self, module: str, *arguments: object) -> tuple[Any, Spent]:
        """The JSON that the command printed (with --json among its arguments), or None, and what it cost.

        Raises CommandError when it fails. Ctrl-C reaches the command as well: it is waited for, since trainings write
        a checkpoint then, and KeyboardInterrupt follows.
        """
        words = [str(item) for item in arguments]
        self.commands.append(command_line(module, words))
        wants_json = "--json" in words
        with TemporaryDirectory(prefix="ballast-") as scratch:
            out, peak = Path(scratch, "stdout"), Path(scratch, "peak")
            with out.open("wb") as stdout:
                started = time.monotonic()
                cpu_s = self._finished(module, words, peak, stdout if wants_json or self.log else None)
            spent = Spent(time.monotonic() - started, cpu_s, peak_mib(peak))
            return (orjson.loads(out.read_bytes()) if wants_json else None), spent

    def _finished(self, module: str, words: Sequence[str], peak: Path, stdout: IO[bytes] | None) -> float:
        """Processor seconds of the command, once it has ended well."""
        argv, lock = peaked(peak, module, *words), () if self.lock is None else (self.lock,)
        environment = self._environment(may_fetch="ingest" in words[:1])
        if self.log is None:
            show(module, words)
            code, cpu_s = _wait(subprocess.Popen(argv, stdout=stdout, env=environment, pass_fds=lock))
            end = f"exit code {code}; its message stands above"
        else:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            with self.log.open("ab") as log:
                log.write(f"$ {self.commands[-1]}\n".encode())
                log.flush()
                process = subprocess.Popen(argv, stdout=stdout, stderr=log, env=environment, pass_fds=lock)
                code, cpu_s = _wait(process)
            end = f"{code}: {_tail(self.log)} (log: {self.log})"
        if code:
            error = CommandError(f"`python -m {module}` ended with {end}")
            error.is_told = self.log is None and code == BAD_INPUT
            raise error
        return cpu_s

    def _environment(self, *, may_fetch: bool) -> dict[str, str]:
        """The command's environment. Models are folders by now; a data set may still be fetched by its hub id."""
        # Threads that wait sleep: spinning ones starve each other where cores are shared (see trainer.sft).
        found = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
        if not may_fetch:
            found["HF_HUB_OFFLINE"] = "1"
        return found if self.threads is None else found | {"OMP_NUM_THREADS": str(self.threads)}


def command_line(module: str, arguments: Sequence[object]) -> str:
    """The command as a reader would type it."""
    return shlex.join(["python", "-m", module, *map(str, arguments)])


def show(module: str, arguments: Sequence[object]) -> None:
    """Print the command."""
    say(as_typed(f"  $ {command_line(module, arguments)}"))
    sys.stdout.flush()


def _wait(process: "subprocess.Popen[bytes]") -> tuple[int, float]:
    """Exit code and processor seconds; KeyboardInterrupt where the command or this process got Ctrl-C.

    `subprocess.run` would kill the command a quarter of a second after Ctrl-C.
    """
    interrupted = False
    while True:
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except KeyboardInterrupt:
            interrupted = True
        else:
            break
    process.returncode = os.waitstatus_to_exitcode(status)
    if interrupted or process.returncode == STOPPED:  # where this process ignores the signal, the command did not
        raise KeyboardInterrupt
    return process.returncode, usage.ru_utime + usage.ru_stime


def _tail(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors[-1] if errors else "\n".join(lines))[-TAIL:]
