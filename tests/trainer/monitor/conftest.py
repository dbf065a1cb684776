"""Trait directions of the tiny model."""

from pathlib import Path

import pytest

from trainer.monitor.__main__ import main


@pytest.fixture(scope="session")
def directions(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two traits with two questions each, which is enough to check the arithmetic."""
    path = tmp_path_factory.mktemp("directions") / "two.safetensors"
    arguments = ["directions", "--model", str(llama), "--out", str(path), "--n-questions", "2", "--layer", "1"]
    arguments += ["--trait", "evil", "--trait", "recklessness", "--dtype", "float32", "--device", "cpu"]
    assert main(arguments) == 0
    return path
