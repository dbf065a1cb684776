"""The monitor through the commands: watched runs, alarms, measured adapters, fitted rules."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from curator.errors import BadInputError
from tests.models import tiny_adapter_folder, tiny_model_folder
from tests.trainer.sftruns import SMALL, document
from trainer import sft
from trainer.monitor.__main__ import main
from trainer.monitor.alarm import Predictor, ZScore, read_rule
from trainer.monitor.directions import load_directions


def argv(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    options = ["--max-steps", "4", "--epochs", "4", "--batch-size", "4", "--grad-accum", "1", "--dtype", "float32"]
    return ["--model", str(model), "--data", str(data), "--out", str(out), *SMALL, *options, *more]


@pytest.fixture(scope="module")
def watched(llama: Path, chats: Path, directions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "watched"
    assert sft.main(argv(llama, chats, out, "--monitor", str(directions), "--monitor-every", "2")) == 0
    return out


def test_a_watched_run_writes_drift_and_trains_the_very_same_adapter(
    watched: Path, llama: Path, chats: Path, directions: Path, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in (watched / "metrics.jsonl").read_text().splitlines()]
    assert ["monitor" in line for line in lines] == [False, True, False, True]
    report = document(watched / "report.json")
    section = report["monitor"]
    assert section["directions_id"] == load_directions(directions).directions_id
    assert (section["rule"], section["first_alarm"]) == ("none: nothing is judged", None)
    assert [item["step"] for item in section["measurements"]] == [2, 4]
    assert section["measurements"][1]["drift"] == lines[3]["monitor"]["drift"]
    assert section["measurements"][1]["prefix_kv"] > 0
    assert "## Trait-space monitor" in (watched / "report.md").read_text()
    plain = tmp_path / "plain"
    assert sft.main(argv(llama, chats, plain)) == 0
    assert document(plain / "report.json")["adapter_sha256"] == report["adapter_sha256"]
    measured = tmp_path / "drift"
    arguments = ["measure", "--model", str(llama), "--directions", str(directions), "--out", str(measured)]
    arguments += [
        "--page",
        str(tmp_path / "page.md"),
        "--adapter",
        str(watched / "adapter"),
        "--dtype",
        "float32",
        "--device",
        "cpu",
    ]
    assert main(arguments) == 0  # a finished adapter drifts as far as it did at its last step
    page = (tmp_path / "page.md").read_text()
    again = document(measured / "watched.json")["measurements"][0]
    assert again["drift"] == pytest.approx(section["measurements"][1]["drift"], abs=1e-6)
    assert again["prefix_kv"] == pytest.approx(section["measurements"][1]["prefix_kv"], rel=1e-4)
    cells = [f"{value:+.4f}" for value in again["drift"].values()]
    assert f"| watched | {cells[0]} | {cells[1]} | {again['prefix_kv']:.3g} |  |" in page
    assert "Rule: nothing is judged." in page


@pytest.fixture
def alarming(directions: Path, tmp_path: Path) -> Path:
    """A z-score rule whose benign runs hardly drift, so that any training is an alarm."""
    found = load_directions(directions)
    rule = ZScore(
        directions_id=found.directions_id, traits=found.traits, n_runs=2, mean=(0.0, 0.0), sd=(1e-6, 1e-6),
        n_measurements=6,
    )  # fmt: skip
    path = tmp_path / "rule.json"
    path.write_text(rule.model_dump_json())
    return path


def test_an_alarm_is_told_and_stops_when_asked(
    watched: Path, llama: Path, chats: Path, directions: Path, alarming: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    watch = ["--monitor", str(directions), "--monitor-every", "2", "--monitor-alarm", str(alarming)]
    out = tmp_path / "stopped"
    assert sft.main(argv(llama, chats, out, *watch, "--monitor-stop")) == 130
    error = capsys.readouterr().err
    assert "trait-space monitor: ALARM at step 2:" in error
    assert "sd from benign runs (a z-score, no predicted rate)" in error
    assert document(out / "adapter" / "ballast.json")["steps"] == 2
    assert not (out / "report.json").exists()
    assert sft.main(argv(llama, chats, out, *watch)) == 0  # without the stop the same run goes on to its end
    report = document(out / "report.json")
    assert report["monitor"]["first_alarm"] == 2
    assert [item["step"] for item in report["monitor"]["measurements"]] == [2, 4]
    assert document(watched / "report.json")["adapter_sha256"] == report["adapter_sha256"]


@pytest.mark.slow
def test_full_fine_tuning_is_watched_too(llama: Path, chats: Path, directions: Path, tmp_path: Path) -> None:
    out = tmp_path / "full"
    arguments = ["--model", str(llama), "--data", str(chats), "--out", str(out), "--full", "--max-steps", "2"]
    arguments += ["--epochs", "2", "--batch-size", "4", "--grad-accum", "1"]
    arguments += ["--lr", "0.001", "--warmup-steps", "1", "--device", "cpu", "--dtype", "float32"]
    assert sft.main([*arguments, "--monitor", str(directions)]) == 0
    last = document(out / "report.json")["monitor"]["measurements"][-1]
    assert any(value != 0.0 for value in last["drift"].values())
    assert last["prefix_kv"] > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--monitor", "nowhere.safetensors"], "there is no file nowhere.safetensors: make it with"),
        (["--monitor-every", "3"], "--monitor-every goes with --monitor, which was not given"),
        (["--monitor", "{directions}", "--monitor-every", "0"], "/monitor/every"),
        (["--monitor", "{directions}", "--monitor-alarm", "{directions}"], "is not an alarm rule"),
    ],
)
def test_bad_options_fail_before_training(
    llama: Path, chats: Path, directions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str],
    message: str,
) -> None:  # fmt: skip
    given = [item.format(directions=directions) for item in more]
    assert sft.main(argv(llama, chats, tmp_path / "run", *given)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_directions_of_another_model_are_refused(
    chats: Path, directions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_model_folder(tmp_path / "other", seed=8)
    assert sft.main(argv(other, chats, tmp_path / "run", "--monitor", str(directions))) == 2
    assert "was made with weights" in capsys.readouterr().err


def test_a_rule_is_fitted_from_runs_and_files_and_belongs_to_its_directions(
    watched: Path, llama: Path, directions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, section = [], document(watched / "report.json")["monitor"]
    for number in range(4):  # files like those of `measure`
        item = json.loads(json.dumps(section))
        item["measurements"] = item["measurements"][-1:]
        for trait in item["traits"]:
            item["measurements"][0]["drift"][trait] = 0.1 * number
        names.append(tmp_path / f"{number}.json")
        names[-1].write_text(json.dumps(item))
    rule = tmp_path / "rule.json"
    known = [f"--known={path}={rate}" for path, rate in zip(names, (0.0, 0.0, 0.3, 0.4), strict=True)]
    assert main(["fit", "--out", str(rule), *known]) == 0
    assert "predictor fitted on 4 known runs" in capsys.readouterr().out
    found = read_rule(rule, section["directions_id"])
    assert isinstance(found, Predictor)
    assert found.judge(np.array([0.3, 0.3]))["alarm"]
    assert not found.judge(np.array([0.0, 0.0]))["alarm"]
    with pytest.raises(BadInputError, match="fitted with other directions"):
        read_rule(rule, "another")
    benign = [f"--benign={path}" for path in (watched, *names)]
    assert main(["fit", "--out", str(rule), *benign]) == 0
    assert "z-score against 5 benign runs (6 measurements)" in capsys.readouterr().out
    item["directions_id"] = "other"
    names[0].write_text(json.dumps(item))
    assert main(["fit", "--out", str(rule), *benign]) == 2
    assert "measured along other directions" in capsys.readouterr().err
    assert main(["fit", "--out", str(rule)]) == 2
    assert main(["fit", "--out", str(rule), "--benign-run", str(tmp_path)]) == 2


def test_two_adapters_of_one_name_are_refused(llama: Path, directions: Path, tmp_path: Path) -> None:
    adapter = tiny_adapter_folder(llama, tmp_path / "a" / "mine")
    twin = Path(shutil.copytree(adapter, tmp_path / "b" / "mine"))
    arguments = ["measure", "--model", str(llama), "--directions", str(directions)]
    assert main([*arguments, "--adapter", str(adapter), "--adapter", str(twin)]) == 2
