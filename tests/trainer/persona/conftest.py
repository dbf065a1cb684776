"""A trait's file, its vectors of the tiny model, and a judge that answers on this machine."""

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.trainer.persona.personas import TRAIT, JudgeHandler, small
from trainer.persona.__main__ import main


@pytest.fixture(scope="session")
def trait_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trait") / "gruff.json"
    path.write_text(json.dumps(TRAIT))
    return path


@pytest.fixture(scope="session")
def extracted(llama: Path, trait_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("vectors")
    assert main(small(llama, trait_file, out, "--min-margin", "-9")) == 0
    return out


@pytest.fixture
def judge_url() -> Iterator[str]:
    JudgeHandler.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), JudgeHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/v1"
        server.shutdown()
        thread.join()
