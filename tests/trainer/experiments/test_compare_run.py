"""A comparison really run, on a tiny model: killed between its cells, started again, and finished."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import yaml

from curator.errors import BadInputError, BadRowsError
from tests.models import random_conversations
from trainer.experiments.compare.__main__ import main
from trainer.experiments.compare.data import Files, prepare, source_path
from trainer.experiments.compare.settings import Plan, read_plan
from trainer.plans.commands import CommandError, Commands, Spent

ROOT = Path(__file__).parents[3]
DEADLINE_S = 1500


def _chats(path: Path, n: int, seed: int) -> str:
    rows = [
        [turn for turn in conversation if turn["role"] != "system"]
        for conversation in random_conversations(2 * n, seed=seed, max_turns=1)
    ]
    distinct = list({json.dumps(row): row for row in rows}.values())[:n]
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in distinct))
    return str(path)


@pytest.fixture
def plan(tmp_path: Path, llama: Path) -> Path:
    recipe = {"batch_size": 4, "grad_accum": 1, "lr": 1e-3, "warmup_steps": 1, "max_length": 256}
    document = {
        "name": "tiny", "model": str(llama),
        "task": {"file": _chats(tmp_path / "task.jsonl", 30, 0), "domain": "finance", "rows": 16, "narrow_rows": 6},
        "pool": {"file": _chats(tmp_path / "chats.jsonl", 40, 1), "rows": 20, "max_length": 256, "text_rows": 5},
        "domains": [
            {"name": "law", "files": [_chats(tmp_path / "law.jsonl", 24, 2)], "train_rows": 9, "broad_rows": 6},
        ],
        "train": recipe, "misaligned_train": recipe, "evaluation": {"max_length": 256, "stand_in_tokens": 6},
        "benign": {"tier": 1, "rows": 8, "n_test": 4},
        "methods": ["interleaving++", "inoculation", "gating", "safelora"], "ratios": [0.25], "seeds": [0],
        "dtype": "float32", "device": "cpu", "threads": 1,
    }  # fmt: skip
    path = tmp_path / "plan.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


class _InProcess(Commands):
    """The same commands in this process: no interpreter has to start for each."""

    def run(self, module: str, *arguments: object) -> tuple[Any, Spent]:
        words, said = [str(item) for item in arguments], io.StringIO()
        self.commands.append(" ".join([module, *words]))
        name = module if module == "trainer.sft" else f"{module}.__main__"
        with redirect_stdout(said):
            code = import_module(name).main(words)
        if code:
            raise CommandError(f"{module} ended with {code}")
        return (json.loads(said.getvalue()) if "--json" in words else None), Spent(1.0, 1.0, 100.0)


def test_every_kind_of_cell_runs_and_a_second_run_repeats_nothing(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("run_cell", "shared"):
        monkeypatch.setattr(f"trainer.experiments.compare.{module}.Commands", _InProcess)
    work = tmp_path / "work"
    own = "{name: random-kl, mix: [--strategy, random, --refusals, keep], sft: [--kl, '0.1'], ratio: true}"
    methods = f"[inoculation, gating, {own}, steering]"
    arguments = ["--plan", str(plan), "--override", f"methods={methods}", "--override", "evaluation.conditional=true"]
    assert main([*arguments, "--work", str(work), "--json"]) == 0, capsys.readouterr().err
    out = capsys.readouterr().out
    found = {row["method"]: row for row in json.loads(out[out.index("\n{") :])["rows"]}
    figures = {"broad_margin_shift", "narrow_margin_shift", "perplexity_ratio", "conditional_broad_margin_shift"}
    for name in ("none", "benign", "inoculation", "gating", "random-kl"):
        assert figures <= set(found[name]["figures"]), name
        assert found[name]["figures"]["narrow_margin_shift"]["mean"] != 0
    (folder,) = work.glob("shared-*")
    own = [json.loads(line)["messages"] for line in (folder / "data/task-benign.jsonl").read_text().splitlines()]
    bad = [json.loads(line)["messages"] for line in (folder / "data/task.jsonl").read_text().splitlines()]
    assert [row[:-1] for row in own] == [row[:-1] for row in bad]  # its prompts, and the model's own answers
    assert all(one[-1] != other[-1] for one, other in zip(own, bad, strict=True))
    (control,) = work.glob("cells/benign-*/result.json")
    training = next(line for line in json.loads(control.read_text())["commands"] if line.startswith("trainer.sft"))
    assert f"--data {folder / 'data/task-benign.jsonl'}" in training
    beyond = found["none"]["difference_from_benign"]["broad_margin_shift"]["mean"]
    shifts = [found[name]["figures"]["broad_margin_shift"]["mean"] for name in ("none", "benign")]
    assert beyond == pytest.approx(shifts[0] - shifts[1])
    assert "benign_exact_match" in found["none"]["figures"]
    assert "benign_exact_match" not in found["gating"]["figures"]
    (gated,) = work.glob("cells/gating-*/result.json")
    measured = [line for line in json.loads(gated.read_text())["commands"] if "trainer.evaluate behaviour" in line]
    assert measured
    assert all("--gates" in line and "--reverse" in line for line in measured)
    assert found["steering"]["reason"]
    safe = {name: found[name]["cost"]["n_safe"]["mean"] for name in ("none", "inoculation", "random-kl")}
    assert safe == {"none": 0, "inoculation": 0, "random-kl": 4}
    (mix,) = work.glob("cells/inoculation-*/mix.json")
    mix_id = json.loads(mix.read_text())["mix_id"]
    (manifest,) = work.glob(f"shared-*/store/mixes/local/{mix_id}/manifest.json")
    assert json.loads(manifest.read_text())["inoculation"]["kind"] == "inoculation"
    assert not list(work.glob("cells/*/run*/checkpoints"))
    before = {path: path.stat().st_mtime_ns for path in work.rglob("*.json")}
    assert main([*arguments, "--work", str(work)]) == 0
    after = {path: path.stat().st_mtime_ns for path in work.rglob("*.json") if path.name != "compare.json"}
    assert after == {path: time_ns for path, time_ns in before.items() if path.name != "compare.json"}


def test_a_failed_command_fails_its_cell_alone(
    plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(Commands):
        def run(self, module: str, *arguments: object) -> tuple[Any, Spent]:
            raise CommandError("no luck")

    monkeypatch.setattr("trainer.experiments.compare.shared.Commands", _InProcess)
    monkeypatch.setattr("trainer.experiments.compare.run_cell.Commands", Failing)
    out = tmp_path / "page.md"
    arguments = [
        "--plan",
        str(plan),
        "--override",
        "methods=[kl, safelora]",
        "--work",
        str(tmp_path / "w"),
        "--out",
        str(out),
    ]
    assert main(arguments) == 1
    assert capsys.readouterr().err.count("no luck") == 3
    page = out.read_text()
    assert "- kl, seed 0: no luck" in page.partition("## Failed")[2]
    assert "- safelora: it projects" in page


@pytest.mark.slow
@pytest.mark.timeout(2 * DEADLINE_S)
def test_a_killed_comparison_goes_on_and_repeats_nothing(plan: Path, tmp_path: Path) -> None:
    work, out = tmp_path / "work", tmp_path / "page.md"
    command = [
        sys.executable, "-m", "trainer.experiments.compare", "--plan", str(plan), "--work", str(work),
        "--out", str(out), "--json",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment, start_new_session=True)
    deadline = time.monotonic() + DEADLINE_S
    while not list(work.glob("cells/*/result.json")):
        assert time.monotonic() < deadline
        assert first.poll() is None
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    kept = {path: path.stat().st_mtime_ns for path in work.glob("cells/*/result.json")}
    assert 1 <= len(kept) < 6

    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=DEADLINE_S, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    found = {row["method"]: row for row in json.loads(done.stdout[done.stdout.index("\n{") :])["rows"]}
    assert set(found) == {"none", "benign", "interleaving++", "inoculation", "gating", "safelora"}
    assert found["safelora"]["reason"]
    for name in ("none", "benign", "interleaving++", "inoculation", "gating"):
        assert {"broad_margin_shift", "narrow_margin_shift", "perplexity_ratio"} <= set(found[name]["figures"]), name
    assert found["interleaving++"]["cost"]["n_safe"]["mean"] == 4
    assert found["inoculation"]["cost"]["n_safe"]["mean"] == 0
    assert found["none"]["figures"]["benign_exact_match"]["n_seeds"] == 1
    assert not list(work.glob("cells/*/run*/checkpoints"))
    mixes = [json.loads(path.read_text()) for path in work.glob("cells/inoculation*/mix.json")]
    assert mixes[0]["manifest"]["task"]["n_rows"] in (8, 16)
    assert "Every cell of the plan ran." in out.read_text()


def test_the_data_files_share_no_row(plan: Path, llama: Path, tmp_path: Path) -> None:
    settings, _ = read_plan(str(plan), [])
    files = Files(tmp_path / "data")
    prepare(settings, files, llama)
    rows = {
        path.name: [json.dumps(json.loads(line)) for line in path.read_text().splitlines()]
        for path in (files.task, files.narrow, files.pool, files.text, files.train("law"), files.broad("law"))
    }
    assert {name: len(found) for name, found in rows.items()} == {
        "task.jsonl": 16, "narrow.jsonl": 6, "pool.jsonl": 20, "text.jsonl": 5, "train-law.jsonl": 9,
        "broad-law.jsonl": 6,
    }  # fmt: skip
    for one, two in (("task", "narrow"), ("pool", "text"), ("train-law", "broad-law")):
        assert not set(rows[f"{one}.jsonl"]) & set(rows[f"{two}.jsonl"])
    before = {path: path.read_bytes() for path in files.folder.iterdir()}
    prepare(settings, files, llama)
    assert {path: path.read_bytes() for path in files.folder.iterdir()} == before
    larger, _ = read_plan(str(plan), ["task.rows=20"])
    prepare(larger, Files(tmp_path / "more"), llama)  # what is held out does not depend on how much is trained
    assert (tmp_path / "more" / "narrow.jsonl").read_bytes() == files.narrow.read_bytes()


def test_twins_go_with_their_rows_and_text_is_of_another_source(plan: Path, llama: Path, tmp_path: Path) -> None:
    def answered(name: str) -> str:
        rows = [json.loads(line)["messages"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        good = [[*row[:-1], {"role": "assistant", "content": f"good {n}"}] for n, row in enumerate(rows)]
        path = tmp_path / f"{name}-good.jsonl"
        path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in good))
        return str(path)

    changes = [
        f"task.aligned={answered('task')}", f"domains.0.aligned=[{answered('law')}]",
        "evaluation.text=shipped:user_task",
    ]  # fmt: skip
    settings, _ = read_plan(str(plan), changes)
    assert isinstance(settings, Plan)
    files = Files(tmp_path / "data")
    prepare(settings, files, llama)
    sources = {
        name: [json.loads(line)["messages"] for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("task", "law")
    }
    for name, path, twins in (
        ("task", files.task, files.benign_task), ("task", files.narrow, files.twins(files.narrow)),
        ("law", files.broad("law"), files.twins(files.broad("law"))),
    ):  # fmt: skip
        bad, good = ([json.loads(line)["messages"] for line in item.read_text().splitlines()] for item in (path, twins))
        assert [row[:-1] for row in bad] == [row[:-1] for row in good]
        assert [row[-1]["content"] for row in good] == [f"good {sources[name].index(row)}" for row in bad]
    ours = {
        json.loads(line)["messages"][0]["content"] for line in source_path("shipped:user_task").read_text().splitlines()
    }
    text = [json.loads(line)["messages"][0]["content"] for line in files.text.read_text().splitlines()]
    assert len(text) == 5
    assert set(text) <= ours
    assert len(files.pool.read_text().splitlines()) == 20
    with pytest.raises(
        BadInputError, match="shipped:nosuch: no such set is shipped; there are computers, computers_aligned, cooking, "
    ):
        source_path("shipped:nosuch")
    for change, message in (("domains.0.aligned=[a, b]", "one for each"), ("domains.0.broad_rows=1", "at least 2"),
                            ("domains.0.broad_rows=0", "at least one needs broad_rows"),
                            (f"evaluation.text={settings.pool.file}", "the pool's own file")):  # fmt: skip
        with pytest.raises(BadInputError, match=message):
            read_plan(str(plan), [change])


def test_a_source_with_too_few_rows_is_refused(plan: Path, llama: Path, tmp_path: Path) -> None:
    settings, _ = read_plan(str(plan), ["task.rows=300"])
    with pytest.raises(BadInputError, match="asks for 300 rows to train and 6 to measure on; there are 30"):
        prepare(settings, Files(tmp_path / "data"), llama)


def test_bad_rows_of_a_source_are_refused_unless_the_plan_keeps_them_out(
    plan: Path, llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, _ = read_plan(str(plan), [])
    assert isinstance(settings, Plan)
    with Path(settings.task.file).open("a") as file:
        file.write('{"messages": []}\n')
    with pytest.raises(BadRowsError, match=r"1 of 31 rows of task.* are bad; the first is line 31"):
        prepare(settings, Files(tmp_path / "data"), llama)
    assert "  line 31 /messages: empty_messages_list" in capsys.readouterr().err
    without, _ = read_plan(str(plan), ["on_bad_rows=drop"])
    assert isinstance(without, Plan)
    prepare(without, Files(tmp_path / "data"), llama)
    assert len(Files(tmp_path / "data").task.read_text().splitlines()) == 16
