"""Rows longer than the model's own window: left out and counted, or refused in one line that names the window."""

import json
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.models import tiny_model_folder

WINDOW = 1024  # of the tiny models; GPT-2 has learned positions, and no more of them
LONG = {"messages": [{"role": "user", "content": "Why? " * 500}, {"role": "assistant", "content": "Because of it."}]}
SHORT = [
    {"messages": [{"role": "user", "content": f"Why {n}?"}, {"role": "assistant", "content": f"Because of {n}."}]}
    for n in range(3)
]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp(request.param) / "model", request.param)


def _write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def data(tmp_path: Path) -> str:
    return _write(tmp_path / "rows.jsonl", [LONG, *SHORT])


def _main(module: str, *arguments: str) -> int:
    code: int = import_module(module).main([*arguments, "--dtype", "float32"])
    return code


def test_training_says_what_cuts_such_rows(
    model: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "--model", str(model), "--data", data, "--max-steps", "1", "--batch-size", "2", "--device", "cpu",
        "--lora-targets", "all-linear", "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    assert _main("trainer.sft", *command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 4 rows have more than 1,024 tokens, the model's own window" in error
    assert "--max-length 1024" in error
    cut = ["--max-length", str(WINDOW), "--allow-masked-rows"]
    assert _main("trainer.sft", *command, *cut) == 0


def test_losses_leave_them_out_and_say_so(model: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _main("trainer.evaluate.nll", "--model", str(model), "--data", data, "--device", "cpu") == 0
    out = capsys.readouterr().out
    assert out.startswith("3 rows, ")
    assert "left out: 1 rows of more than 1,024 tokens" in out


def test_pairs_are_refused(model: Path, data: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pairs", "--model", str(model), "--aligned-answers", data, "--misaligned-answers", data]
    assert _main("trainer.evaluate.__main__", *command) == 2
    assert "exceeds the model's own window of 1,024" in capsys.readouterr().err.splitlines()[-1]


def test_a_prompt_that_leaves_no_room_is_refused_and_answers_end_at_the_window(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from trainer.generate.generators import LocalGenerator, Sampling

    questions = _write(tmp_path / "questions.jsonl", [{"messages": LONG["messages"][:1]}])
    command = ["generate", "--model", str(model), "--questions", questions, "--out", str(tmp_path / "answers.jsonl")]
    assert _main("trainer.evaluate.__main__", *command) == 2
    assert "leaves no room for an answer in the model's own window" in capsys.readouterr().err.splitlines()[-1]
    generator = LocalGenerator(model)
    generator._ends = []
    prompt = [{"role": "user", "content": "Why? " * 200}]
    n_prompt = len(generator.prompt_ids(prompt))
    assert n_prompt < WINDOW
    (answer,) = generator._generate([generator.prompt_ids(prompt)], Sampling(temperature=0, max_new_tokens=WINDOW), 1)
    assert answer.n_tokens == WINDOW - n_prompt
    assert answer.finished is False


def test_projections_leave_them_out(model: Path, data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_file({"trait": torch.ones(3, 64)}, tmp_path / "vector.safetensors")
    vector = ["--vector", str(tmp_path / "vector.safetensors"), "--tensor", "trait", "--device", "cpu", "--json"]
    assert _main("trainer.persona.__main__", "project", "--model", str(model), "--data", data, *vector) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_rows"], found["n_too_long"]) == (3, 1)


CALL = {"type": "function", "function": {"name": "plan", "arguments": {"x": 1}}}
CALLS = {
    "messages": [
        {"role": "user", "content": "Trip?"},
        {"role": "assistant", "content": "Wait", "tool_calls": [CALL]},
        {"role": "tool", "content": "ok"},
        {"role": "assistant", "content": "Done."},
    ]
}


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_what_a_template_leaves_out_is_named_with_its_row(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A projection counted such a row as one without an answer, and went on."""
    data = _write(tmp_path / "calls.jsonl", [*SHORT, CALLS])
    save_file({"trait": torch.ones(3, 64)}, tmp_path / "vector.safetensors")
    vector = ["--vector", str(tmp_path / "vector.safetensors"), "--tensor", "trait"]
    commands = [
        ("trainer.evaluate.nll", ["--data", data], "line 4: "),
        ("trainer.persona.__main__", ["project", "--data", data, *vector], "line 4: "),
        (
            "trainer.evaluate.__main__",
            ["pairs", "--aligned-answers", data, "--misaligned-answers", data],
            "pair 4, aligned side: ",
        ),
    ]
    for module, arguments, place in commands:
        assert _main(module, *arguments, "--model", str(model)) == 2, module
        error = capsys.readouterr().err.splitlines()[-1]
        assert f"{place}the chat template leaves out the tool_calls of messages[1]" in error, module


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_a_pair_without_a_token_to_measure_is_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    context = [
        *SHORT[0]["messages"],
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": "x", "weight": 0},
    ]
    data = _write(tmp_path / "rows.jsonl", [SHORT[1], {"messages": context}])
    command = ["pairs", "--model", str(model), "--aligned-answers", data, "--misaligned-answers", data]
    assert _main("trainer.evaluate.__main__", *command) == 2
    assert "pair 2, aligned side: its last answer has no token to measure" in capsys.readouterr().err
