"""The parts of the demo that `.ci/run` does not see: what makes it fail."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread, imsave

from curator.errors import MissingDependencyError
from curator.query.plots import loss_curve, save
from curator.store.store import Store
from trainer.experiments.demo import checks, report, steps
from trainer.experiments.demo.__main__ import main
from trainer.experiments.demo.model import package_file
from trainer.experiments.demo.settings import short
from trainer.experiments.demo.shell import DemoFailedError, run, run_json
from trainer.experiments.demo.steps import Outcome, require_all_read, require_shift
from trainer.plans.commands import CommandError


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
    with pytest.raises(CommandError, match="exit code 2"):
        run("curator", "verify", "0" * 32, "--store", "no/such/store")
    with pytest.raises(CommandError, match="exit code 2"):
        run_json("curator", "verify", "0" * 32, "--store", "no/such/store")
    assert "no/such/store" in capfd.readouterr().err


@pytest.mark.parametrize("call", ["run('slow')", "run_json('slow')"])
def test_ctrl_c_waits_for_the_command_at_hand(tmp_path: Path, call: str) -> None:
    """A terminal's Ctrl-C reaches both; the command takes its time to finish, as a training step does."""
    (tmp_path / "slow.py").write_text("""
import signal, sys, time
from pathlib import Path
here = Path(__file__).parent
def stop(number, frame):
    time.sleep(1.0)
    (here / "finished").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
(here / "started").touch()
time.sleep(60)
""")
    code = f"""
from trainer.experiments.demo.shell import run, run_json
try:
    {call}
except KeyboardInterrupt:
    raise SystemExit(7)
"""
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, start_new_session=True
    )
    try:
        while not (tmp_path / "started").exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 7
        assert (tmp_path / "finished").exists()
    finally:
        process.kill()


def test_a_sample_too_small_for_a_gap_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rows", "3", "--out", str(tmp_path)]) == 1
    assert "at least" in capsys.readouterr().err


def test_ingest_judges_what_the_command_left_in_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo, entry = short(tmp_path), _entry()

    def command(module: str, *arguments: object) -> None:
        assert (module, arguments[0], arguments[-1]) == ("curator", "ingest", demo.store)
        Store(demo.store).open().write_json("corpora/sharegpt/corpus.json", {"ingests": [entry]})

    monkeypatch.setattr(steps, "run", command)
    monkeypatch.setattr(steps, "package_file", lambda package, pattern: tmp_path / "ShareGPT.json")
    steps.ingest(demo)
    entry["kept"] = 16_778
    with pytest.raises(DemoFailedError, match="accounted for"):
        steps.ingest(demo)


def test_heldout_shift_measures_an_adapter_once_and_judges_it_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "run" / "adapter" / "adapter_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"one")
    measured = {"mean_nll_base": 3.0, "mean_nll_adapter": 2.0, "n_rows": 30}
    calls: list[str] = []

    def command(module: str, *arguments: object) -> dict[str, Any]:
        calls.append(module)
        return dict(measured)

    monkeypatch.setattr(steps, "run_json", command)
    for _ in range(2):
        found = steps.heldout_shift(short(tmp_path), tmp_path / "model", tmp_path / "run")
        assert (found["mean_nll_adapter"], found["n_rows"]) == (2.0, 30)
    assert calls == ["trainer.evaluate.nll"]
    measured["mean_nll_adapter"] = 2.99
    weights.write_bytes(b"another")
    for _ in range(2):  # what was kept is judged as well
        with pytest.raises(DemoFailedError, match="did nothing"):
            steps.heldout_shift(short(tmp_path), tmp_path / "model", tmp_path / "run")
    assert calls == ["trainer.evaluate.nll"] * 2


@pytest.fixture
def finished(tmp_path: Path) -> Outcome:
    """What the commands of a demo leave for its report."""
    run = tmp_path / "runs" / "mix-0"
    run.mkdir(parents=True)
    save(loss_curve([1, 2], {"loss": [2.5, 1.25]}), run / "loss.png")
    save(loss_curve([1, 2], {"loss": [1.0, 3.0]}), tmp_path / "gap.png")
    (run / "metrics.jsonl").write_text("".join(json.dumps({"step": n, "loss": 2.5 / n}) + "\n" for n in (1, 2)))
    manifest = {"task": {"n_rows": 60}, "n_safe": 12, "ratio": {"asked": 0.2, "reached_rows": 0.2}}
    heldout = {"n_rows": 30, "mean_nll_base": 3.0, "mean_nll_adapter": 2.0}
    return Outcome(heldout, "0" * 32, manifest, run, tmp_path / "runs" / "misaligned")


def test_the_report_has_its_figures_and_real_pictures(tmp_path: Path, finished: Outcome) -> None:
    demo = short(tmp_path)
    path = report.write(demo, finished)
    assert path.read_text().splitlines()[:3] == [
        "# Demo report", "", "Written by `python -m trainer.experiments.demo` from the files named below.",
    ]  # fmt: skip
    for words in (
        "(shift -1.0000)",
        "60 task rows and 12 safe rows",
        "loss 2.5000 at the first and 1.2500 at the last",
    ):
        assert words in path.read_text()
    for name in checks.PICTURES:
        assert np.ptp(imread(tmp_path / name)) > 0
        assert f"({name})" in path.read_text()
    checks.require_report(demo)


def test_a_demo_without_its_pictures_fails(tmp_path: Path, finished: Outcome) -> None:
    demo = short(tmp_path)
    path = report.write(demo, finished)
    imsave(tmp_path / "gap.png", np.ones((9, 9, 3)))
    with pytest.raises(DemoFailedError, match=r"gap\.png is an empty picture"):
        checks.require_report(demo)
    for damage in (b"", b"no picture"):
        (tmp_path / "gap.png").write_bytes(damage)
        with pytest.raises(DemoFailedError, match=r"gap\.png is not a picture"):
            checks.require_report(demo)
    path.write_text("")
    with pytest.raises(DemoFailedError, match=r"report\.md is missing or empty"):
        checks.require_report(demo)


def test_a_second_run_that_does_anything_anew_fails(
    tmp_path: Path, finished: Outcome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The whole command, its steps replaced by what they leave."""
    out = tmp_path / "short"
    anew = [out / "runs" / "misaligned" / "adapter" / "adapter_model.safetensors"]

    def run_all(chosen: object, models: Path) -> Outcome:
        out.mkdir(exist_ok=True)
        (out / "gap.png").write_bytes((tmp_path / "gap.png").read_bytes())
        for path in anew:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"1")
        return finished

    monkeypatch.setattr(steps, "run_all", run_all)
    arguments = ["--short", "--out", str(tmp_path), "--expect-complete"]
    assert main(arguments) == 1  # the first run makes them
    assert "should have been complete and skipped; 1 files changed" in capsys.readouterr().err
    anew.clear()
    assert main(arguments) == 0
    anew.append(out / "store" / "scores" / "sharegpt" / "s" / "part-0.parquet")
    assert main(arguments) == 1
    assert "part-0.parquet" in capsys.readouterr().err
    anew.clear()
    (out / "gap.png").unlink()
    monkeypatch.setattr(steps, "run_all", lambda chosen, models: finished)
    assert main(arguments) == 1
    assert "gap.png is not a picture" in capsys.readouterr().err
