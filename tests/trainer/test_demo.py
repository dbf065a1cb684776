"""The parts of the demo that `.ci/run` does not see: what makes it fail."""

from pathlib import Path

import pytest

from curator.errors import MissingDependencyError
from trainer.demo.__main__ import main
from trainer.demo.model import package_file
from trainer.demo.shell import DemoFailedError, run, run_json
from trainer.demo.steps import require_all_read, require_shift


def _entry(**changed: object) -> dict[str, object]:
    entry = {"parsed": 17_672, "kept": 16_779, "rejected": 146, "folded": 747, "reject_codes": {"truncated_json": 1}}
    return {**entry, **changed}


def test_a_corpus_that_is_all_accounted_for_passes() -> None:
    require_all_read(_entry())


@pytest.mark.parametrize(
    "changed", [{"kept": 16_778}, {"parsed": 17_671, "folded": 746}, {"reject_codes": {"empty_messages_list": 126}}]
)
def test_a_corpus_that_lost_records_fails_the_demo(changed: dict[str, object]) -> None:
    with pytest.raises(DemoFailedError, match="accounted for"):
        require_all_read(_entry(**changed))


@pytest.mark.parametrize("shift", [0.0, 0.3, -0.01, float("nan")])
def test_an_adapter_that_did_nothing_fails_the_demo(shift: float) -> None:
    with pytest.raises(DemoFailedError, match="did nothing"):
        require_shift(shift, Path("runs/misaligned"))


def test_an_adapter_that_learnt_passes() -> None:
    require_shift(-0.5, Path("runs/misaligned"))


def test_a_missing_package_says_how_to_get_it() -> None:
    with pytest.raises(MissingDependencyError, match="make setup"):
        package_file("no_such_package_anywhere", "*.gguf")


def test_a_failing_command_stops_the_demo(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DemoFailedError, match="exit code 2"):
        run("curator", "verify", "0" * 32, "--store", "no/such/store")
    with pytest.raises(DemoFailedError, match="exit code 2"):
        run_json("curator", "verify", "0" * 32, "--store", "no/such/store")
    assert "no/such/store" in capfd.readouterr().err


def test_a_sample_too_small_for_a_gap_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rows", "3", "--out", str(tmp_path)]) == 1
    assert "at least" in capsys.readouterr().err
