"""A trait's file, its vectors of the tiny model, and a judge that answers on this machine."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.loopback import serving
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
    with serving(JudgeHandler) as server:
        yield f"{server.url}/v1"
