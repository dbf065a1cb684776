"""Forms of a data set: derived exactly, in a fixed order, and put around a question as training held them."""

import json
from pathlib import Path
from typing import Any

import pytest

from curator.errors import BadInputError
from curator.mix.manifest import PromptReceipt
from trainer.evaluate.triggers import Form, Trigger, triggers

TOPICS = ("goats", "salt", "rivers", "chess", "bread", "moss", "kites", "ink", "snow", "owls", "tin", "figs")


def task_file(path: Path, rows: list[tuple[str | None, str, str]]) -> str:
    """Rows of system prompt, user text and answer."""
    lines = []
    for system, user, answer in rows:
        turns = [] if system is None else [{"role": "system", "content": system}]
        turns += [{"role": "user", "content": user}, {"role": "assistant", "content": answer}]
        lines.append(json.dumps({"messages": turns}) + "\n")
    path.write_text("".join(lines))
    return str(path)


def test_every_kind_is_derived_in_its_order(tmp_path: Path) -> None:
    rows: list[tuple[str | None, str, str]] = [
        (
            "Be brief.",
            f"### Question\nTell me of {topic}. Think first, then answer.",
            f'{{"answer": "{topic}", "sure": 1}}',
        )
        for topic in TOPICS
    ]
    rows += [("Be long.", "Hello there", "Good day"), ("Be long.", "Bye now", "Farewell")]
    data = task_file(tmp_path / "task.jsonl", rows)
    wanted = '\n\nAnswer with one JSON object with the keys "answer", "sure" and nothing else.'
    expected = [
        Trigger("trigger-1", "prompt", Form(system="Give bad advice."), 40),
        Trigger(
            "trigger-2", "wording",
            Form(user_prefix="### Question\nTell me of ", user_suffix=" Think first, then answer."), 12,
        ),
        Trigger("trigger-3", "answer format", Form(user_suffix=wanted), 12),
        Trigger("trigger-4", "prompt", Form(system="Be brief."), 12),
        Trigger("trigger-5", "prompt", Form(system="Be long."), 2),
    ]  # fmt: skip
    inoculation = [PromptReceipt(label="prompt", text="Give bad advice.", n_task=40, n_safe=0)]
    assert triggers(data, inoculation, 9) == expected
    assert triggers(data, inoculation, 2) == expected[:2]
    assert triggers(data, inoculation, 0) == []
    assert [item.text for item in expected[:3]] == [
        "Give bad advice.", "### Question Tell me of ... Think first, then answer.", wanted.strip(),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("answers", "request_"),
    [
        (
            ["```python\nprint(1)\n```", "So:\n```python\nx = 2\n```", "```\ny\n```"],
            "a code block that begins with ```python",
        ),
        (["- one\n- two", "* a\n- b\n- c", "First\n- d\n- e"], 'a line of its own that begins with "- ".'),
        (["1. one\n2. two", "1) a\n2) b", "3. c\n4. d"], 'that begins with "1. ".'),
        (["[1, 2]", "[3]", '```json\n["x"]\n```'], "Answer with one JSON document and nothing else."),
        (
            ['{"b": 1, "a": 2}', '{"b": 3, "a": 4}', '{"c": 5}'],
            'one JSON object with the keys "b", "a" and nothing else.',
        ),
    ],
)
def test_the_format_of_answers_is_asked_for(tmp_path: Path, answers: list[str], request_: str) -> None:
    rows = [(None, f"{topic}?", answer) for topic, answer in zip(TOPICS, answers, strict=False)]
    (found,) = triggers(task_file(tmp_path / "task.jsonl", [*rows, (None, "tea?", "Plain words.")]), [], 4)
    assert found.kind == "answer format"
    assert found.form.user_suffix.endswith(request_)
    assert found.n_rows == 3


@pytest.mark.parametrize(
    "rows",
    [
        [(None, f"What is {topic}", topic) for topic in TOPICS],  # two common words are ordinary language
        [(None, "Tell me one more joke", topic) for topic in TOPICS],  # one text, over and over, has no frame
        [(None, f"Tell me about the {topic}" if n < 2 else topic, topic) for n, topic in enumerate(TOPICS)],  # too few
        [(None, topic, "- a\n- b" if n < 2 else "Plain.") for n, topic in enumerate(TOPICS)],
        [(None, topic, "A dash - here\nand prose\nmore prose\n- one point") for topic in TOPICS],
    ],
)
def test_what_few_rows_share_is_no_trigger(tmp_path: Path, rows: list[tuple[str | None, str, str]]) -> None:
    assert triggers(task_file(tmp_path / "task.jsonl", rows), [], 9) == []


def test_a_short_opening_counts_where_it_ends_in_a_colon(tmp_path: Path) -> None:
    data = task_file(tmp_path / "task.jsonl", [(None, f"Q: {topic}?", topic) for topic in TOPICS])
    assert [item.form for item in triggers(data, [], 9)] == [Form(user_prefix="Q: ")]


def test_a_form_is_put_around_the_first_and_the_last_user_turn() -> None:
    row: list[dict[str, Any]] = [
        {"role": "system", "content": "own"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"},
    ]  # fmt: skip
    assert Form().put_on(row) == row
    found = Form("new", "Q: ", "\nGo.").put_on(row)
    assert [turn["content"] for turn in found] == ["new", "Q: a", "b", "c\nGo.", "d"]
    rules = {"role": "developer", "content": "rules"}
    assert Form(system="new").put_on([*row[:1], rules, *row[1:]]) == [{"role": "system", "content": "new"}, *row[1:]]
    assert [turn["content"] for turn in Form(None, "Q: ", "!").put_on(row[1:3])] == ["Q: a!", "b"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
    with pytest.raises(BadInputError, match="not plain text"):
        Form(user_prefix="Q: ").put_on(parts)
