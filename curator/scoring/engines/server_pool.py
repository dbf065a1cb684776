"""Several vLLM servers of one model as one engine: rows go to whichever has room, and a dead server is left out.

Before any loss counts, the first rows are scored on every server and must agree within the bound of the check: two
servers with other weights or settings would give one scorer losses of two measures.
"""

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING

import httpx

from curator.console import warn
from curator.errors import BadInputError, ScoringError
from curator.scoring.check import row_bound
from curator.scoring.engines.base import OnRows, RowLoss
from curator.scoring.engines.server_engine import NAME, RowRefusedError, ServerEngine, ServerLaunch, find_version

if TYPE_CHECKING:
    from curator.render import Rendered

N_CROSSED = 8  # rows that every server scores at first

Warn = Callable[[str], None]


@dataclass(frozen=True)
class ServerPoolLaunch:
    """How to reach several servers; all have one model, `version` and `dtype`."""

    servers: tuple[ServerLaunch, ...]
    name: str = NAME
    device: str = "cuda"

    @property
    def version(self) -> str:
        """What the operator says of all of them."""
        return self.servers[0].version

    @property
    def dtype(self) -> str:
        """The same."""
        return self.servers[0].dtype

    def __call__(self) -> "ServerPool":
        """Connect; nothing is sent before rows are scored."""
        return ServerPool(self)

    def with_threads(self, n: int) -> "ServerPoolLaunch":
        """The same: servers have threads of their own."""
        return self


@dataclass
class _Server:
    url: str
    engine: ServerEngine
    room: int
    busy: int = 0
    dead: bool = False

    def send(self, index: int, rows: "Sequence[Rendered]", done: "SimpleQueue[_Sent]") -> "_Sent":
        """Ask for a row's loss; `done` gets it."""
        self.busy += 1
        sent = _Sent(self, index, self.engine.submit(rows[index]))
        sent.future.add_done_callback(lambda _: done.put(sent))
        return sent


@dataclass(frozen=True)
class _Sent:
    server: _Server
    index: int
    future: Future[RowLoss]


class ServerPool:
    """`base.Engine` over the servers that live. `on_warning` gets a line for each that is left out."""

    name = NAME

    def __init__(self, launch: ServerPoolLaunch, on_warning: Warn = warn) -> None:
        self.version, self.dtype = launch.version, launch.dtype
        self._servers = [_Server(item.url, item(), item.concurrency) for item in launch.servers]
        self._warn = on_warning
        self._n_crossed = 0
        self._probe: Rendered | None = None  # a row that every server scored

    def use_adapter(self, path: Path | None) -> None:
        """Nothing to do: which adapter runs is decided by the servers' model name."""

    def score(self, rows: "Sequence[Rendered]", on_rows: OnRows | None = None) -> list[RowLoss]:
        """One loss for each row, in the order given; see `base.Engine.score`.

        Raises ScoringError when servers do not agree on the first rows, or none is left.
        """
        if self._n_crossed < N_CROSSED:
            self._cross_check(rows)
        losses: list[RowLoss | None] = [None] * len(rows)
        waiting, sent = deque(range(len(rows))), list[_Sent]()
        done: SimpleQueue[_Sent] = SimpleQueue()
        n_left = len(rows)
        try:
            while n_left:
                for server in self._living():
                    while waiting and server.busy < server.room:
                        sent.append(server.send(waiting.popleft(), rows, done))
                found = done.get()
                found.server.busy -= 1
                row, loss = rows[found.index], self._outcome(found, rows[found.index])
                if loss is None:
                    waiting.append(found.index)
                    continue
                losses[found.index], n_left = loss, n_left - 1
                if on_rows is not None:
                    on_rows(1, row.n_tokens)
        finally:
            for item in sent:
                item.future.cancel()
            for server in self._servers:
                server.busy = 0
        return [loss for loss in losses if loss is not None]

    def close(self) -> None:
        """End the connections."""
        for server in self._servers:
            server.engine.close()

    def _living(self) -> list[_Server]:
        living = [server for server in self._servers if not server.dead]
        if not living:
            raise ScoringError("none of the servers answers any more: start one, and run the command again")
        return living

    def _outcome(self, sent: _Sent, row: "Rendered") -> RowLoss | None:
        """The loss; None where the row must go to another server, since this one is dead."""
        server = sent.server
        try:
            return sent.future.result()
        except ConnectionError as error:
            if not server.dead:
                if self._probe is not None and server.engine.answers(self._probe):
                    raise  # it lives, and gives no answer for this row
                self._leave_out(server, str(error))
            return None

    def _leave_out(self, server: _Server, reason: str) -> None:
        server.dead = True
        n_left = sum(not item.dead for item in self._servers)
        self._warn(f"the server at {server.url} is left out, {n_left} go on: {reason}")

    def _cross_check(self, rows: "Sequence[Rendered]") -> None:
        """Score some of the rows, of all lengths, on every living server, and compare."""
        by_length = sorted(rows, key=lambda row: row.n_tokens)
        n = min(N_CROSSED, len(rows))
        chosen = [by_length[index * (len(rows) - 1) // max(n - 1, 1)] for index in range(n)]
        sent = [(server, [server.engine.submit(row) for row in chosen]) for server in self._living()]
        found: dict[str, list[RowLoss | None]] = {}
        for server, futures in sent:
            try:
                found[server.url] = [_answer(future) for future in futures]
            except ConnectionError as error:
                self._leave_out(server, str(error))
        self._living()
        (first, expected), *others = found.items()
        for url, losses in others:
            for row, one, other in zip(chosen, expected, losses, strict=True):
                _require_agreement((first, one), (url, other), row, self.dtype)
        scored = [row for row, loss in zip(chosen, expected, strict=True) if loss is not None]
        self._n_crossed += len(scored)
        self._probe = self._probe or next(iter(scored), None)


def _answer(future: "Future[RowLoss]") -> RowLoss | None:
    """The loss; None for a row that the server refuses."""
    try:
        return future.result()
    except RowRefusedError:
        return None


def _require_agreement(
    one: tuple[str, RowLoss | None], other: tuple[str, RowLoss | None], row: "Rendered", dtype: str
) -> None:
    means = [loss.nll_sum / loss.n_response_tokens if loss else None for _, loss in (one, other)]
    if means[0] == means[1]:
        return
    bound = row_bound(dtype, one[1].n_response_tokens if one[1] else 1)
    if None in means or not abs(float(means[0] or 0.0) - float(means[1] or 0.0)) <= bound:
        shown = " and ".join("refused" if mean is None else f"{mean:.6f} nats per token" for mean in means)
        raise ScoringError(
            f"the servers at {one[0]} and {other[0]} do not agree on a row of {row.n_tokens} tokens: {shown}, at most "
            f"{bound:.2g} apart are allowed. They must run one model with the same settings; nothing was stored of this"
        )


def find_servers(
    urls: Sequence[str], model: str, on_warning: Warn = warn, timeout_s: float = 10.0
) -> dict[str, tuple[str, int | None]]:
    """(version, window in tokens) by the address of each server that answers.

    BadInputError when none does, or one lacks the model; with several, those that do not answer are left out.
    """
    found: dict[str, tuple[str, int | None]] = {}
    absent: list[BadInputError] = []
    for url in dict.fromkeys(urls):
        try:
            found[url] = find_version(url, model, timeout_s)
        except BadInputError as error:
            if not isinstance(error.__cause__, httpx.TransportError):
                raise
            absent.append(error)
    if not found:
        raise absent[0]
    for left_out in absent:
        on_warning(f"left out: {left_out.message}")
    return found
