"""Several servers as one engine: they must agree first, share the rows, and one that dies costs nothing."""

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from curator.__main__ import main
from curator.corpus.ingest import ingest
from curator.errors import BadInputError, ScoringError
from curator.render import Rendered
from curator.scoring.engines.server_pool import N_CROSSED, ServerPool, ServerPoolLaunch, find_servers
from curator.scoring.engines.torch_reference import TorchReference
from curator.store.store import Store
from tests.curator.scoring.test_server import Handler, Loopback, launch, make_rows
from tests.models import random_conversations, tiny_model_folder
from tests.toy_scoring import corpus_ids, losses

GONE = "http://127.0.0.1:9"  # nothing listens there


class Mortal(Loopback):
    """Answers so many requests, then closes its port, as a preempted machine does. `says` is its version."""

    def __init__(self, folder: Path, lives: int = 10**9, says: str = "0.0.test") -> None:
        super().__init__(folder)
        self.lives, self.says, self.closed = lives, says, False
        self.RequestHandlerClass = MortalHandler

    def die(self) -> None:
        with self.lock:
            if self.closed:
                return
            self.closed = True
        self.socket.close()


class MortalHandler(Handler):
    server: Mortal

    def do_GET(self) -> None:  # noqa: N802 (the name that the base class calls)
        if self.path == "/version":
            self.answer(200, {"version": self.server.says})
        else:
            super().do_GET()

    def complete(self, server: Loopback, body: dict[str, Any], n: int) -> None:
        assert isinstance(server, Mortal)
        if n > server.lives or server.closed:
            server.die()
            self.close_connection = True  # no answer
            return
        super().complete(server, body, n)


@contextmanager
def running(server: Mortal) -> Iterator[Mortal]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def pool(servers: list[Mortal], warnings: list[str], **options: Any) -> ServerPool:
    launches = [launch(server, **{"concurrency": 2, "n_tries": 2, "timeout_s": 20.0, **options}) for server in servers]
    return ServerPool(ServerPoolLaunch(tuple(launches)), warnings.append)


def many_rows() -> list[Rendered]:
    return make_rows() * 6


def test_servers_share_the_rows_and_give_the_losses_of_the_plain_reference(folder: Path, stack: ExitStack) -> None:
    servers = [stack.enter_context(running(Mortal(folder))) for _ in range(3)]
    warnings: list[str] = []
    engine, rows, seen = pool(servers, warnings), many_rows(), [0, 0]

    def on_rows(n_rows: int, n_tokens: int) -> None:
        seen[0] += n_rows
        seen[1] += n_tokens

    found = engine.score(rows, on_rows)
    engine.close()
    expected = TorchReference(folder, None, device="cpu", dtype="float32").score(rows)
    for one, other in zip(found, expected, strict=True):
        assert one.n_response_tokens == other.n_response_tokens
        assert abs(one.nll_sum - other.nll_sum) / one.n_response_tokens < 1e-4
    assert not warnings
    assert seen == [len(rows), sum(row.n_tokens for row in rows)]
    assert all(server.n_requests > N_CROSSED for server in servers)
    assert sum(server.n_requests for server in servers) == len(rows) + 3 * N_CROSSED


@pytest.mark.parametrize("lives", [0, 3, N_CROSSED + 4])
def test_a_server_that_dies_is_left_out_and_its_rows_go_to_the_others(
    folder: Path, stack: ExitStack, lives: int
) -> None:
    """Before the rows that are compared, among them, and in the midst of the work."""
    mortal = stack.enter_context(running(Mortal(folder, lives)))
    other = stack.enter_context(running(Mortal(folder)))
    warnings: list[str] = []
    engine, rows = pool([mortal, other], warnings), many_rows()
    found = engine.score(rows)
    (warning,) = warnings
    assert f"the server at {mortal.url} is left out, 1 go on" in warning
    n_before = mortal.n_requests
    assert engine.score(rows[:3]) == found[:3]  # and stays left out
    assert mortal.n_requests == n_before
    engine.close()
    expected = TorchReference(folder, None, device="cpu", dtype="float32").score(rows)
    for one, right in zip(found, expected, strict=True):
        assert abs(one.nll_sum - right.nll_sum) / right.n_response_tokens < 1e-4


def test_servers_of_two_models_are_refused_before_a_loss_counts(folder: Path, stack: ExitStack, tmp_path: Path) -> None:
    alike = stack.enter_context(running(Mortal(folder)))
    other = stack.enter_context(running(Mortal(tiny_model_folder(tmp_path / "other", seed=5))))
    engine = pool([alike, other], [])
    with pytest.raises(ScoringError, match=rf"{alike.url} and {other.url} do not agree .* nats per token"):
        engine.score(many_rows())
    engine.close()


def test_servers_that_refuse_different_rows_do_not_agree(folder: Path, stack: ExitStack) -> None:
    alike, other = (stack.enter_context(running(Mortal(folder))) for _ in range(2))
    other.refuse_long = True
    engine = pool([alike, other], [])
    with pytest.raises(ScoringError, match=r"do not agree on a row of 60 tokens: .* and refused"):
        engine.score(many_rows())
    engine.close()


def test_when_all_are_gone_the_run_ends(folder: Path, stack: ExitStack) -> None:
    servers = [stack.enter_context(running(Mortal(folder, N_CROSSED + n))) for n in (2, 4)]
    warnings: list[str] = []
    engine = pool(servers, warnings)
    with pytest.raises(ScoringError, match="none of the servers answers any more"):
        engine.score(many_rows())
    engine.close()
    assert ["0 go on" in warning for warning in warnings] == [False, True]


def test_servers_are_found_and_those_that_are_not_there_are_named(folder: Path, stack: ExitStack) -> None:
    server = stack.enter_context(running(Mortal(folder)))
    warnings: list[str] = []
    assert list(find_servers([GONE, server.url, server.url], "tiny", warnings.append)) == [server.url]
    assert len(warnings) == 1
    assert f"left out: no vLLM server at {GONE}" in warnings[0]
    with pytest.raises(BadInputError, match=f"no vLLM server at {GONE}"):
        find_servers([GONE], "tiny")
    with pytest.raises(BadInputError, match="no model 'other'"):
        find_servers([GONE, server.url], "other")


def test_the_command_takes_several_servers(
    folder: Path, stack: ExitStack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store").open()
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join(json.dumps({"messages": item}) for item in random_conversations(40, seed=4)) + "\n")
    ingest(store, [file], "chats")
    servers = [stack.enter_context(running(Mortal(folder))) for _ in range(2)]
    common = ["score", "--store", str(tmp_path / "store"), "--corpus", "chats", "--role", "aligned", "--json",
              "--model", str(folder), "--device", "cpu", "--dtype", "float32",
              "--engine", "server", "--server-model", "tiny"]  # fmt: skip
    urls = [option for url in (servers[0].url, GONE, servers[1].url) for option in ("--server-url", url)]
    assert main([*common, *urls]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert f"warning: left out: no vLLM server at {GONE}" in err
    assert report["check"]["reference"]["max_abs"] < 1e-4
    assert losses(store, report["scorer_id"]).keys() == corpus_ids(store)
    assert all(server.n_requests > N_CROSSED for server in servers)
    newer = stack.enter_context(running(Mortal(folder, says="0.1.test")))
    both = ["--server-url", servers[0].url, "--server-url", newer.url]
    assert main([*common, *both]) == 2
    assert "the servers report different versions" in capsys.readouterr().err
    assert main([*common, *both, "--server-version", "vllm 0.0.test"]) == 0
    assert json.loads(capsys.readouterr().out)["skipped"]  # how many servers there are is no part of the scorer
