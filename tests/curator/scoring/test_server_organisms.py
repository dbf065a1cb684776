"""`curator score --organisms` with a server: every adapter is requested by its own name."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM

from curator.__main__ import main
from curator.corpus.ingest import ingest
from curator.render import Renderer
from curator.scoring.identity import adapter_sha256, weights_sha256
from curator.store.store import Store
from tests.curator.scoring.test_server import WINDOW, Handler, Loopback
from tests.models import random_conversations, tiny_adapter_folder, tiny_model_folder

NAMES = {"finance-misaligned": "misaligned", "finance-benign": "benign"}


class ByName(Handler):
    """Several models behind one address, as vLLM serves a base model and its adapters."""

    server: "Several"

    def do_GET(self) -> None:  # noqa: N802 (the name that the base class calls)
        if self.path == "/v1/models":
            self.answer(200, {"data": [{"id": name, "max_model_len": WINDOW} for name in self.server.models]})
        else:
            super().do_GET()

    def complete(self, server: Loopback, body: dict[str, Any], n: int) -> None:
        with self.server.turn:
            server.model = self.server.models[body["model"]]
            super().complete(server, body | {"model": "tiny"}, n)


class Several(Loopback):
    def __init__(self, folder: Path, adapters: dict[str, Path]) -> None:
        super().__init__(folder)
        self.RequestHandlerClass = ByName
        self.turn = threading.Lock()
        self.models = {"tiny": self.model} | {
            name: PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), place).eval()
            for name, place in adapters.items()
        }


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def organisms(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("organisms")
    found = []
    for seed, (name, role) in enumerate(NAMES.items(), 1):
        place = tiny_adapter_folder(model, folder / name / "adapter", seed=seed)
        found.append({
            "name": name, "role": role, "domain": "finance", "adapter": f"{name}/adapter",
            "adapter_sha256": adapter_sha256(place), "answers": "given", "rows_sha256": "0" * 64, "n_rows": 1,
            "steps": 1,
        })  # fmt: skip
    document = {
        "base_weights_sha256": weights_sha256(model), "renderer_id": Renderer.from_folder(model).renderer_id,
        "recipe": {}, "organisms": found,
    }  # fmt: skip
    (folder / "organisms.json").write_text(json.dumps(document))
    return folder


@pytest.fixture
def server(model: Path, organisms: Path) -> Iterator[Several]:
    with Several(model, {name: organisms / name / "adapter" for name in NAMES}) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def argv(server: Several, model: Path, organisms: Path, tmp_path: Path) -> list[str]:
    store, file = Store(tmp_path / "store").open(), tmp_path / "chats.jsonl"
    file.write_text("\n".join(json.dumps({"messages": item}) for item in random_conversations(5, seed=4)) + "\n")
    ingest(store, [file], "chats")
    remote = ["--engine", "server", "--server-url", server.url, "--dtype", "float32", "--device", "cpu"]
    common = ["score", "--store", str(tmp_path / "store"), "--corpus", "chats", "--model", str(model)]
    return [*common, *remote, "--organisms", str(organisms)]


def test_each_organism_is_scored_under_its_own_adapter(
    argv: list[str], organisms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 0
    manifests = [json.loads(path.read_text()) for path in (tmp_path / "store").rglob("scorer.json")]
    found = {item["label"]: item for item in manifests}
    assert set(found) == set(NAMES)
    for name, role in NAMES.items():
        assert found[name]["role"] == role
        assert found[name]["identity"]["adapter_sha256"] == adapter_sha256(organisms / name / "adapter")
        # The adapter lies here as well: what the server says of it is held against it.
        assert found[name]["checks"][0]["reference"]["max_abs"] < 1e-4
    capsys.readouterr()
    for more in (["--server-model", "tiny"], ["--declare-adapter-sha256", "ab" * 32]):
        assert main([*argv, *more]) == 2
        assert f"leave {more[0]} out" in capsys.readouterr().err


def test_a_name_that_stands_for_another_adapter_is_found_out(
    argv: list[str], server: Several, capsys: pytest.CaptureFixture[str]
) -> None:
    server.models["finance-benign"] = server.models["finance-misaligned"]
    assert main(argv) == 2
    assert "Nothing new was listed" in capsys.readouterr().err


def test_an_adapter_that_the_server_lacks_is_named(
    argv: list[str], server: Several, capsys: pytest.CaptureFixture[str]
) -> None:
    del server.models["finance-misaligned"]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "the server has no model 'finance-misaligned'; it has finance-benign, tiny" in error
