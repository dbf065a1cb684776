"""Worker processes of the service's own, so that a queued mix is built without anybody starting `python -m api worker`.

They run while mixes are queued, one job after the other, and ten minutes more; they end with the service, whatever ends
it. A build in them holds up no request: it has its own interpreter and a lower priority.
"""

import contextlib
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO

import orjson

from api.jobs.board import Board
from api.jobs.record import Job
from api.settings import Settings
from api.telemetry import log_event
from curator.errors import BallastError, StoreError

AGAIN_S = 1.0  # before a worker is started again for jobs that came while the last one ended
FAILED_S = 30.0  # the same after one that failed
LINGER_S = 600.0  # a worker stays for the next job
END_S = 10.0  # for handing a job back
NICENESS = 5
MAX_LINE = 500


@dataclass
class OwnWorkers:
    """At most `settings.workers` processes, started when a job is queued; `observe` is called with each ended job."""

    settings: Settings
    board: Board
    observe: Callable[[Job], None]
    _processes: "dict[int, subprocess.Popen[str] | None]" = field(default_factory=dict)  # by place
    _ending: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def wake(self) -> None:
        """Have one more worker at work, unless all are."""
        with self._lock:
            free = set(range(self.settings.workers)) - set(self._processes)
            if free and not self._ending.is_set():
                place = min(free)
                self._processes[place] = None
                threading.Thread(target=self._work, args=(place,), daemon=True).start()

    def close(self) -> None:
        """End them; a running job is handed back."""
        self._ending.set()
        with self._lock:
            processes = [process for process in self._processes.values() if process is not None]
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(END_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _work(self, place: int) -> None:
        """Run workers as long as there are mixes to build."""
        try:
            while not self._ending.is_set() and self._has_jobs():
                failed = self._run(place) != 0
                self._ending.wait(FAILED_S if failed else AGAIN_S)
        finally:
            with self._lock:
                del self._processes[place]

    def _run(self, place: int) -> int:
        """One worker until it finds nothing left to do; what it reports goes to the log."""
        with self._lock:
            if self._ending.is_set():
                return 0
            self._processes[place] = process = self._start()
        assert process.stderr is not None
        assert process.stdout is not None
        threading.Thread(target=self._follow, args=(process.stdout,), daemon=True).start()
        with process.stderr as lines:
            for line in lines:
                log_event(logging.WARNING, "worker", text=line.strip()[:MAX_LINE])
        code = process.wait()
        if code and not self._ending.is_set():
            log_event(logging.ERROR, "worker ended", code=code)
        return code

    def _follow(self, lines: IO[str]) -> None:
        """Observe the jobs that a worker names on its stdout; its other lines are for a terminal."""
        with lines:
            for line in lines:
                with contextlib.suppress(orjson.JSONDecodeError, BallastError):  # or the job was removed meanwhile
                    self.observe(self.board.read(**orjson.loads(line)))

    def _start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "api", "worker", "--store", self.settings.store, "--linger", str(LINGER_S)]
        if self.settings.job_queue is not None:
            command += ["--job-queue", self.settings.job_queue]
        process = subprocess.Popen(
            [*command, "--parent", str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C on the service ends it when the service says so
        )
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        return process

    def _has_jobs(self) -> bool:
        try:
            return any(self.board.has_record(*found) for found in self.board.active("mix"))
        except StoreError as error:
            log_event(logging.WARNING, "jobs cannot be listed", error)
            return False
