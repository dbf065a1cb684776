"""Tokens of a mix's rows, counted a batch at a time; of a large mix by a second process too.

Counting takes most of a mix's time and holds the interpreter, so a thread would not help. The helper has the same
renderer, gets every batch that this process does not take, and ends with it.
"""

import os
import socket
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Self

from curator.errors import RenderError
from curator.messages import load_messages
from curator.mix.manifest import TokenCount
from curator.render import MaskRule, Renderer, RenderSettings
from curator.render.model_folder import RendererFiles

# Of a batch of rows whose tokens are counted together, about 40 bytes a character in memory.
BATCH_ROWS = 512
BATCH_CHARS = 1 << 20
HELP_FROM_ROWS = 20_000  # a second process pays for its start (about a second) from here on
_AHEAD = 2  # batches that wait for the helper or are counted by it

Batch = tuple[Sequence[str], Sequence[str]]  # origins, messages


@dataclass
class _Sums:
    """Counts of the rows of one origin."""

    total: int = 0
    response: int = 0
    n_failed: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def add(self, other: "_Sums") -> None:
        """Add what was counted elsewhere."""
        self.total += other.total
        self.response += other.response
        self.n_failed += other.n_failed
        self.dropped.update(other.dropped)


class TokenCounter:
    """Counts tokens of whole conversations and of their trained part. Close it, or use it as a context.

    `n_rows` is how many rows come; from HELP_FROM_ROWS on a second process counts too, where there is a second core.
    """

    def __init__(self, renderer: Renderer, mask_rule: MaskRule, n_rows: int = 0) -> None:
        self._renderer, self._mask_rule = renderer, mask_rule
        self._sums = {"task": _Sums(), "safe": _Sums()}
        helped = n_rows >= HELP_FROM_ROWS and (os.cpu_count() or 1) > 1
        self._helper = _Helper(renderer, mask_rule) if helped else None

    @property
    def render_settings(self) -> dict[str, Any]:
        """The renderer's settings, without defaults."""
        return self._renderer.settings.document()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, origins: Sequence[str], messages: Sequence[str]) -> None:
        """Count rows (canonical JSON texts); some hundreds at a time go fastest."""
        start = 0
        for end in _batch_ends(messages):
            batch = (origins[start:end], messages[start:end])
            if self._helper is None or not self._helper.take(batch):
                self._merge(_counted(self._renderer, self._mask_rule, batch))
            start = end

    def count(self, origin: str) -> TokenCount:
        """The sums over the rows of one origin so far."""
        if self._helper is not None:
            for batch, found in self._helper.finish():
                self._merge(found or _counted(self._renderer, self._mask_rule, batch))
        sums = self._sums[origin]
        dropped = dict(sorted(sums.dropped.items()))
        return TokenCount(total=sums.total, response=sums.response, n_rows_not_rendered=sums.n_failed, dropped=dropped)

    def close(self) -> None:
        """End the helper, if there is one."""
        if self._helper is not None:
            self._helper.close()
            self._helper = None

    def _merge(self, found: dict[str, _Sums]) -> None:
        for origin, sums in found.items():
            self._sums[origin].add(sums)


class _Helper:
    """A process that counts, and the thread that talks to it."""

    def __init__(self, renderer: Renderer, mask_rule: MaskRule) -> None:
        ours, theirs = socket.socketpair()
        # A command of its own: multiprocessing would run the caller's script once more.
        path = os.pathsep.join(item or str(Path.cwd()) for item in sys.path)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "curator.mix.token_counter", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PYTHONPATH": path, "LC_ALL": "C.UTF-8", "TOKENIZERS_PARALLELISM": "false"},
                pass_fds=[theirs.fileno()],
            )
        self._connection: Connection = Connection(ours.detach())
        self._thread = ThreadPoolExecutor(1)
        self._thread.submit(self._begin, (renderer.files, renderer.settings, mask_rule))
        self._sent: deque[tuple[Batch, Future[dict[str, _Sums] | None]]] = deque()
        self._done: list[tuple[Batch, dict[str, _Sums] | None]] = []

    def take(self, batch: Batch) -> bool:
        """Give it a batch, unless it has enough to do."""
        while self._sent and self._sent[0][1].done():
            self._settle()
        if len(self._sent) >= _AHEAD:
            return False
        self._sent.append((batch, self._thread.submit(self._ask, batch)))
        return True

    def finish(self) -> list[tuple[Batch, dict[str, _Sums] | None]]:
        """Every batch given so far with its counts; None for one that it did not count, because it was killed."""
        while self._sent:
            self._settle()
        found, self._done = self._done, []
        return found

    def close(self) -> None:
        """End it, whatever it does."""
        self._process.kill()
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._connection.close()
        self._process.wait()

    def _settle(self) -> None:
        batch, asked = self._sent.popleft()
        found = asked.result()
        self._done.append((batch if found is None else ([], []), found))

    def _begin(self, asked: tuple[RendererFiles, RenderSettings, MaskRule]) -> None:
        with suppress(OSError):  # it was killed: the first batch comes back uncounted
            self._connection.send(asked)

    def _ask(self, batch: Batch) -> dict[str, _Sums] | None:
        try:
            self._connection.send(batch)
            found: dict[str, _Sums] = self._connection.recv()
        except (OSError, EOFError):
            return None
        return found


def _help(descriptor: int) -> None:
    """The helper's whole life: counts for batches, until the other end is closed."""
    with suppress(EOFError, OSError, KeyboardInterrupt), Connection(descriptor) as connection:
        files, settings, mask_rule = connection.recv()
        renderer = Renderer(files, settings)
        while True:
            connection.send(_counted(renderer, mask_rule, connection.recv()))


def _counted(renderer: Renderer, mask_rule: MaskRule, batch: Batch) -> dict[str, _Sums]:
    """The counts of a batch, by origin."""
    origins, messages = batch
    found = {origin: _Sums() for origin in set(origins)}
    for origin, row in zip(origins, renderer.render_all(map(load_messages, messages), mask_rule), strict=True):
        sums = found[origin]
        if isinstance(row, RenderError):
            sums.n_failed += 1
            continue
        sums.total += row.n_tokens
        sums.response += row.n_response_tokens
        if row.dropped:
            sums.dropped.update(row.dropped)
    return found


def _batch_ends(messages: Sequence[str]) -> Iterator[int]:
    """Where batches of rows end, one row in each at least."""
    n_chars = start = 0
    for end, text in enumerate(messages, start=1):
        n_chars += len(text)
        if end - start == BATCH_ROWS or n_chars >= BATCH_CHARS or end == len(messages):
            yield end
            n_chars, start = 0, end


if __name__ == "__main__":
    # Under the package's own name, so that what is sent means the same in both processes.
    from curator.mix import token_counter

    token_counter._help(int(sys.argv[1]))
