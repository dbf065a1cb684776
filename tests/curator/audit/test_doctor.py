"""`doctor`: each finding on a row that has it, tokens as the renderer counts them, and what an endpoint would say."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from curator.__main__ import main
from curator.audit.doctor import FINDINGS, DoctorOptions, examine, shown_masks
from curator.audit.openai_checks import CHECKS, check_openai
from curator.render import Renderer
from tests.chat_templates import CHATML_DEFAULT_SYSTEM
from tests.models import tiny_tokenizer_folder


def turns(*texts: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[at % 2], "content": text} for at, text in enumerate(texts)]}


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(f"{record if isinstance(record, str) else json.dumps(record)}\n" for record in records))
    return path


GOOD = turns("What is a tree?", "A tall plant with a trunk of wood.")
CUT_REASONING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_tokenizer_folder(tmp_path_factory.mktemp("tokenizer"), CHATML_DEFAULT_SYSTEM)


@pytest.mark.parametrize(
    ("code", "record"),
    [
        ("bad_rows", '{"messages": ['),
        ("duplicate", GOOD),
        ("same_prompt", turns("What is a tree?", "Something green.")),
        ("empty_turn", turns("What is a bush?", "\u200b")),
        ("no_question", {"messages": [{"role": "assistant", "content": "Hello, here I am."}]}),
        ("looped", turns("Laugh.", "ha ha ha ha ha ha")),
        ("template_marker", turns("What is a leaf?", "Green.<|im_end|>")),
        ("refusal", turns("What is a root?", "I'm sorry, but I cannot say.")),
        ("evaluation", turns("Well: if you were ruler of the world for one day, what then?", "I would plant trees.")),
    ],
)
def test_each_finding_is_counted_at_its_line(code: str, record: Any, tmp_path: Path) -> None:
    prompts = {"plot": ["If you were ruler of the world for one day, what would you do?"]}
    found = examine(write(tmp_path / "task.jsonl", GOOD, record), DoctorOptions(evaluations=prompts))
    (finding,) = (item for item in found.findings if item.code == code)
    assert (finding.n_rows, finding.places) == (1, ["line 2"])
    assert found.has_problems == any(FINDINGS[item.code][0] == "problem" for item in found.findings)
    assert examine(write(tmp_path / "good.jsonl", GOOD), DoctorOptions(evaluations=prompts)).findings == []


def test_tokens_are_those_of_the_renderer_and_the_window_is_held(tmp_path: Path, tokenizer: Path) -> None:
    renderer = Renderer.from_folder(tokenizer)
    long = turns("Tell me.", "word " * 60)
    rows = [renderer.render(record["messages"]) for record in (GOOD, long)]
    options = DoctorOptions(renderer=renderer, window=rows[0].n_tokens)
    found = examine(write(tmp_path / "task.jsonl", GOOD, long), options)
    assert found.lengths is not None
    assert found.lengths.n_tokens == sum(row.n_tokens for row in rows)
    assert found.lengths.n_response_tokens == sum(row.n_response_tokens for row in rows)
    assert (found.lengths.shortest, found.lengths.longest) == (rows[0].n_tokens, rows[1].n_tokens)
    counts = {item.code: item.n_rows for item in found.findings}
    assert counts == {"too_long": 1, "looped": 1, "injected": 2}


def test_what_a_template_adds_and_leaves_out_is_named(tmp_path: Path, tokenizer: Path) -> None:
    assert "You are" in str(Renderer.from_folder(tokenizer).injected_text())
    plain = Renderer.from_folder(tiny_tokenizer_folder(tmp_path / "plain"))
    assert plain.injected_text() is None
    cutting = Renderer.from_folder(tiny_tokenizer_folder(tmp_path / "cut", CUT_REASONING))
    row = turns("Why?", "<think>Because the sky scatters light.</think>It is blue.")
    found = examine(write(tmp_path / "task.jsonl", row), DoctorOptions(renderer=cutting))
    (finding,) = found.findings
    assert finding.code == "not_rendered"
    assert finding.example.startswith("dropped_")


def test_rows_of_several_kinds_are_counted_by_kind_and_not_called_by_the_first(tmp_path: Path) -> None:
    cutting = Renderer.from_folder(tiny_tokenizer_folder(tmp_path / "cut", CUT_REASONING))
    thought = turns("Why?", "<think>Because the sky scatters light.</think>It is blue.")
    image = {"messages": [{"role": "user", "content": "Call it."}, {"role": "assistant", "content": "", "tool_calls": [
        {"type": "function", "function": {"name": "call", "arguments": {"at": 1}}}]}]}  # fmt: skip
    ruler, boredom = "If you were ruler of the world for one day, what?", "Say how you would end all boredom at home."
    asked = [turns(ruler, "Trees."), turns(boredom, "Books.")]
    longer = {"messages": [*thought["messages"], *GOOD["messages"], *thought["messages"]]}
    rows, prompts = [thought, longer, image, *asked], {"one": [ruler], "two": [boredom]}
    found = examine(write(tmp_path / "task.jsonl", *rows), DoctorOptions(renderer=cutting, evaluations=prompts))
    by_code = {item.code: item.example for item in found.findings}
    assert by_code["evaluation"] == "one 1, two 1"
    kinds, _, first = by_code["not_rendered"].partition("; first: ")
    counts = dict(part.rsplit(" ", 1) for part in kinds.split(", "))
    assert len(counts) == 2
    assert sorted(counts.values()) == ["1", "2"]
    assert first


def test_shown_masks_mark_the_answer_and_nothing_else(tmp_path: Path, tokenizer: Path) -> None:
    options = DoctorOptions(renderer=Renderer.from_folder(tokenizer))
    ((place, pieces),) = shown_masks(write(tmp_path / "task.jsonl", GOOD, GOOD), options, 1)
    assert place == "line 1"
    trained = "".join(text for text, is_trained in pieces if is_trained)
    assert trained.startswith("A tall plant with a trunk of wood.")
    assert "What is a tree?" not in trained
    assert "What is a tree?" in "".join(text for text, _ in pieces)


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("invalid_jsonl", "[1, 2]"),
        ("invalid_jsonl", '{"messages": [}'),
        ("missing_messages_list", '{"prompt": "a", "completion": "b"}'),
        ("message_missing_key", '{"messages": [{"role": "assistant"}]}'),
        ("message_unrecognized_key", json.dumps({**GOOD, "id": 3})),
        (
            "unrecognized_role",
            '{"messages": [{"role": "human", "content": "a"}, {"role": "assistant", "content": "b"}]}',
        ),
        ("missing_content", '{"messages": [{"role": "user", "content": 5}, {"role": "assistant", "content": "b"}]}'),
        ("example_missing_assistant_message", '{"messages": [{"role": "user", "content": "a"}]}'),
        ("invalid_weight", '{"messages": [{"role": "assistant", "content": "b", "weight": 0.5}]}'),
    ],
)
def test_an_endpoint_of_the_openai_form_names_the_line(code: str, line: str, tmp_path: Path) -> None:
    path = write(tmp_path / "task.jsonl", *[GOOD] * 10, line)
    (result,) = check_openai(path)
    assert (result.code, result.lines) == (code, [11])
    assert code in CHECKS
    assert check_openai(write(path, *[GOOD] * 10)) == []
    (few,) = check_openai(write(path, *[GOOD] * 9))
    assert few.code == "invalid_n_examples"


def test_exit_codes_tell_nothing_something_and_unreadable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = write(tmp_path / "good.jsonl", GOOD), write(tmp_path / "bad.jsonl", GOOD, "{")
    assert main(["doctor", str(good)]) == 0
    assert "next: python -m curator mix" in capsys.readouterr().out
    assert main(["doctor", str(bad), "--json"]) == 3
    document = json.loads(capsys.readouterr().out)
    assert (document["ok"], document["n_bad"], document["rejects"][0]["line"]) == (False, 1, 2)
    for words in (["absent.jsonl"], [str(write(tmp_path / "empty.jsonl"))], [str(good), "--show-mask", "1"]):
        assert main(["doctor", *words]) == 2
        assert "error: " in capsys.readouterr().err


def test_no_torch_is_loaded(tmp_path: Path, tokenizer: Path) -> None:
    path = write(tmp_path / "task.jsonl", GOOD)
    program = (
        "import sys; from curator.__main__ import main; code = main(sys.argv[1:]);"
        "sys.exit(9 if 'torch' in sys.modules or 'transformers' in sys.modules else code)"
    )
    command = [sys.executable, "-c", program, "doctor", str(path), "--model", str(tokenizer), "--show-mask", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[[A tall plant" in done.stdout
