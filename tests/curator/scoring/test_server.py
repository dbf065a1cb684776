"""The server engine against a small HTTP server on loopback that answers as vLLM does, with real log-probabilities."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from curator.__main__ import main
from curator.corpus.ingest import ingest
from curator.errors import BadInputError, ScoringError
from curator.render import Rendered
from curator.scoring.engines.server_engine import SERVER_KEY, ServerLaunch, find_version
from curator.scoring.engines.torch_reference import TorchReference
from curator.scoring.faults import FaultTolerantEngine
from curator.store.store import Store
from tests.models import random_conversations, tiny_model_folder, tiny_tokenizer_folder

WINDOW = 200
LONG = 60  # rows of this many tokens are refused in one test


class Loopback(ThreadingHTTPServer):
    """`/v1/completions` of one tiny model: prompt ids in, the log-probability of each prompt token out."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.lock = threading.Lock()
        self.n_requests, self.at_once, self.most_at_once = 0, 0, 0
        self.fail_every, self.refuse_long, self.down, self.cut = 0, False, False, False
        self.key: str | None = None
        self.page: bytes | None = None  # every answer, as a proxy would give it

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def prompt_logprobs(self, ids: list[int]) -> list[Any]:
        with torch.inference_mode():
            log_probs = torch.log_softmax(self.model(input_ids=torch.tensor([ids])).logits[0].float(), -1)
        entries: list[Any] = [None]
        for t in range(1, len(ids)):
            entry = {ids[t]: float(log_probs[t - 1, ids[t]])}
            best = int(log_probs[t - 1].argmax())  # vLLM may add the most likely token beside the prompt's own
            entry.setdefault(best, float(log_probs[t - 1, best]))
            entries.append({str(key): {"logprob": value, "rank": 1} for key, value in entry.items()})
        return entries


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else bodies wait 40 ms for the headers' acknowledgement
    server: Loopback

    def log_message(self, *args: object) -> None:
        pass

    def answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode() if self.server.page is None else self.server.page
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refused(self) -> bool:
        key = self.server.key
        if key is None or self.headers["Authorization"] == f"Bearer {key}":
            return False
        self.answer(401, {"error": "Unauthorized"})
        return True

    def do_GET(self) -> None:
        if self.refused():
            return
        if self.path == "/version":
            self.answer(200, {"version": "0.0.test"})
        else:
            self.answer(200, {"data": [{"id": "tiny", "max_model_len": WINDOW}]})

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.refused():
            return
        with server.lock:
            server.n_requests += 1
            n, server.at_once = server.n_requests, server.at_once + 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            self.complete(server, body, n)
        finally:
            with server.lock:
                server.at_once -= 1

    def complete(self, server: Loopback, body: dict[str, Any], n: int) -> None:
        if body["model"] != "tiny":
            return self.answer(404, {"error": "no such model"})
        if server.down or (server.fail_every and n % server.fail_every == 0):
            return self.answer(503, {"error": "busy"})
        if server.refuse_long and len(body["prompt"]) >= LONG:
            return self.answer(400, {"error": "prompt refused"})
        assert (body["max_tokens"], body["prompt_logprobs"]) == (1, 0)
        assert len(body["prompt"]) + body["max_tokens"] <= WINDOW
        with server.lock:
            entries = server.prompt_logprobs(body["prompt"])
        return self.answer(200, {"choices": [{"prompt_logprobs": entries[:-1] if server.cut else entries}]})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def server(folder: Path) -> Iterator[Loopback]:
    with Loopback(folder) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def launch(server: Loopback, **options: Any) -> ServerLaunch:
    return ServerLaunch(server.url, "tiny", "float32", "vllm test", **{"backoff_s": 0.001, **options})


def make_rows() -> list[Rendered]:
    rng = np.random.default_rng(3)
    rows = []
    for length in (7, 40, 3, LONG, 21, 12):
        mask = rng.random(length) < 0.5
        mask[-1] = True
        rows.append(Rendered(rng.integers(0, 300, length).astype(np.int32), mask))
    return rows


def test_losses_are_those_of_the_plain_reference_though_requests_are_lost(server: Loopback, folder: Path) -> None:
    server.fail_every = 3
    engine = launch(server, concurrency=3)()
    rows = make_rows()
    found = engine.score(rows)
    engine.close()
    expected = TorchReference(folder, None, device="cpu", dtype="float32").score(rows)
    for one, other in zip(found, expected, strict=True):
        assert one.n_response_tokens == other.n_response_tokens
        assert abs(one.nll_sum - other.nll_sum) / one.n_response_tokens < 1e-4
    assert server.n_requests > len(rows)
    assert server.most_at_once <= 3


def test_a_refused_row_is_marked_and_a_server_that_is_gone_ends_the_run(server: Loopback) -> None:
    server.refuse_long = True
    engine = launch(server, n_tries=2)()
    found = FaultTolerantEngine(engine).score(make_rows())
    assert [isinstance(loss, str) for loss in found] == [False, False, False, True, False, False]
    assert "HTTP 400" in str(found[3])
    server.down = True
    with pytest.raises(ScoringError, match="no answer after 2 tries; last HTTP 503"):
        FaultTolerantEngine(engine).score(make_rows()[:1])
    engine.close()


def test_what_is_no_vllm_server_is_refused(server: Loopback) -> None:
    server.cut = True
    engine = launch(server)()
    with pytest.raises(ScoringError, match="it cut or changed the prompt"):
        engine.score(make_rows()[:1])
    engine.close()
    assert find_version(server.url, "tiny") == ("vllm 0.0.test", WINDOW)
    with pytest.raises(BadInputError, match="no model 'other'; it has tiny"):
        find_version(server.url, "other")
    with pytest.raises(BadInputError, match="no vLLM server at"):
        find_version("http://127.0.0.1:9", "tiny")


def test_pages_of_a_proxy_in_place_of_answers_are_named(server: Loopback) -> None:
    engine = launch(server)()
    server.page = b"<html>Please sign in</html>"
    with pytest.raises(ScoringError, match="is not JSON but '<html>Please sign in</html>'"):
        engine.score(make_rows()[:1])
    with pytest.raises(BadInputError, match="no vLLM server at"):
        find_version(server.url, "tiny")
    for page in (b'{"data": [{"name": "tiny"}]}', b'{"data": ["tiny"]}', b'{"data": 5}', b"[]"):
        server.page = page
        with pytest.raises(BadInputError, match="no vLLM server at"):
            find_version(server.url, "tiny")
    for entry in ('{"logprob": "none"}', '{"logprob": null}', "null", "5"):
        entries = ", ".join(f'{{"{token}": {entry}}}' for token in make_rows()[2].input_ids)
        server.page = f'{{"choices": [{{"prompt_logprobs": [{entries}]}}]}}'.encode()
        with pytest.raises(ScoringError, match="no prompt log-probabilities"):
            engine.score(make_rows()[2:3])
    engine.close()


def test_a_server_that_wants_a_key_gets_it_from_the_environment(
    server: Loopback, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.key = "secret"
    with pytest.raises(BadInputError, match=f"wants a key: set .{SERVER_KEY}"):
        find_version(server.url, "tiny")
    engine = launch(server)()
    with pytest.raises(ScoringError, match=f"refuses the key: .*Set .{SERVER_KEY}"):
        engine.score(make_rows()[:1])
    engine.close()
    monkeypatch.setenv(SERVER_KEY, "secret")
    # The address as other commands want it, with /v1, serves too.
    assert find_version(f"{server.url}/v1", "tiny") == ("vllm 0.0.test", WINDOW)
    engine = ServerLaunch(f"{server.url}/v1/", "tiny", "float32", "vllm test")()
    assert len(engine.score(make_rows()[:2])) == 2
    engine.close()


def test_the_command_records_what_is_declared(
    server: Loopback, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store").open()
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join(json.dumps({"messages": item}) for item in random_conversations(8, seed=4)) + "\n")
    ingest(store, [file], "chats")
    bare = tiny_tokenizer_folder(tmp_path / "tokenizer")
    common = ["score", "--store", str(tmp_path / "store"), "--corpus", "chats", "--role", "aligned"]
    remote = ["--engine", "server", "--server-url", server.url, "--server-model", "tiny", "--dtype", "float32"]
    assert main([*common, *remote, "--model", str(bare), "--declare-weights-sha256", "ab" * 32, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    manifest = store.read_json(f"scores/chats/{report['scorer_id']}/scorer.json")
    assert manifest["identity"]["declared"] == ["weights_sha256", "adapter_sha256", "dtype", "engine_version"]
    assert manifest["identity"]["weights_sha256"] == "ab" * 32
    assert manifest["identity"]["max_length"] == WINDOW - 1
    assert manifest["label"] == "tiny"
    assert manifest["checks"][0]["reference"] is None
    assert main([*common, *remote, "--model", str(folder), "--device", "cpu", "--json"]) == 0
    check = json.loads(capsys.readouterr().out)["check"]
    assert check["reference"]["max_abs"] < 1e-4  # the weights are here, so the server is held against them
    for wrong, message in (
        ([*remote, "--model", str(bare)], "give --declare-weights-sha256"),
        ([*remote, "--model", str(bare), "--declare-weights-sha256", "xy"], "is not a SHA-256"),
        ([*remote[:-2], "--model", str(bare)], "needs --dtype"),
        ([*remote[:2], "--model", str(bare)], "needs --server-url"),
        (["--server-model", "tiny", "--model", str(bare)], "--server-model needs --engine server"),
    ):
        assert main([*common, *wrong]) == 2
        assert message in capsys.readouterr().err
