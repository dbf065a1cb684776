"""Equality with transformers, the response mask, and refusals, over all template families."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from curator.errors import RenderError
from curator.render import Rendered, Renderer, RenderSettings
from tests.chat_templates import (
    CHATML_GENERATION,
    FAMILIES,
    QWEN3,
    Family,
)
from tests.models import CHATML, random_conversations, tiny_tokenizer_folder

Messages = list[dict[str, Any]]
CUTS = RenderSettings.parse(accept_dropped=["reasoning"])  # Qwen-3's template cuts that of earlier turns

CONTENTS = (
    "Paris.",
    " leading and trailing  ",
    "\n\nlines\n\n  indented\n",
    "Grüße, 東京 \U0001f600 e\u0301",
    "",
    "   ",
    "[INST] not a turn [/INST]",
    "a </think> b",
    "{{ messages }} {% raw %} \\n \x00",
)


@pytest.fixture(scope="module", params=FAMILIES, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Family:
    chosen: Family = request.param
    return chosen


@pytest.fixture(scope="module")
def folder(family: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return family.folder(tmp_path_factory.mktemp(family.name))


@pytest.fixture(scope="module")
def renderer(folder: Path) -> Renderer:
    return Renderer.from_folder(folder, settings=CUTS)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder)


def conversations(family: Family) -> list[Messages]:
    found: list[Messages] = [
        [{"role": "user", "content": f"Say {content}"}, {"role": "assistant", "content": content}]
        for content in CONTENTS
    ]
    found += [[{"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}] for content in CONTENTS]
    found += [[turn for pair in found[start : start + 4] for turn in pair] for start in range(0, 12, 2)]
    found += [[{"role": "user", "content": "only a question"}], *random_conversations(40)]
    if family.system:
        found += [[{"role": "system", "content": content}, *found[0]] for content in CONTENTS]
    else:
        found = [messages for messages in found if messages[0]["role"] != "system"]
    if not family.alternates:
        found += [messages[1:] for messages in found[:4]]
        found += [[*found[0], {"role": "assistant", "content": "And more."}]]
    return found


def masked_runs(rendered: Rendered) -> list[list[int]]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], rendered.response_mask, [0]))))
    return [rendered.input_ids[start:end].tolist() for start, end in edges.reshape(-1, 2)]


def test_ids_equal_apply_chat_template(family: Family, renderer: Renderer, reference: Any) -> None:
    for messages in conversations(family):
        expected = reference.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"]
        assert renderer.render(messages).input_ids.tolist() == expected, messages


def is_rewritten(family: Family, answer: str) -> bool:
    """Whether Qwen-3's template takes part of this answer away (tested below)."""
    return family.name == "qwen3" and ("</think>" in answer or answer.startswith("\n"))


def test_mask_decodes_to_contents_and_closing_markers(family: Family, renderer: Renderer, reference: Any) -> None:
    checked = 0
    for messages in conversations(family):
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        if any(is_rewritten(family, answer) for answer in answers):
            continue
        decoded = [reference.decode(run) for run in masked_runs(renderer.render(messages))]
        expected = [(answer.strip() if family.trims else answer) + family.closing for answer in answers]
        if family.options.get("kind") == "metaspace":  # this decoder drops the first space
            decoded, expected = [text.lstrip() for text in decoded], [text.lstrip() for text in expected]
        assert len(decoded) == len(expected), messages
        for found, wanted in zip(decoded, expected, strict=True):
            # White space of the header may share a token with the content's own.
            assert found.endswith(wanted), messages
            assert found.removesuffix(wanted).strip() == "", messages
        checked += len(answers)
    assert checked > 60


def test_last_masks_the_last_answer_alone(family: Family, renderer: Renderer) -> None:
    for messages in random_conversations(20, seed=5):
        if messages[0]["role"] == "system" and not family.system:
            continue
        every, last = renderer.render(messages), renderer.render(messages, mask_rule="last")
        assert last.input_ids.tolist() == every.input_ids.tolist()
        assert masked_runs(last) == masked_runs(every)[-1:]
        assert last.n_response_tokens == len(masked_runs(every)[-1])


@pytest.mark.parametrize("name", ["llama3", "gemma", "mistral"])
def test_bos_stands_once(name: str, tmp_path: Path) -> None:
    folder = next(family for family in FAMILIES if family.name == name).folder(tmp_path)
    bos_id = AutoTokenizer.from_pretrained(folder).bos_token_id
    messages = [message for message in random_conversations(1, seed=2)[0] if message["role"] != "system"]
    ids = Renderer.from_folder(folder).render(messages).input_ids.tolist()
    assert ids[0] == bos_id
    assert ids.count(bos_id) == 1


def test_without_an_answer_nothing_is_masked(renderer: Renderer) -> None:
    rendered = renderer.render([{"role": "user", "content": "Hello"}])
    assert rendered.n_response_tokens == 0
    assert rendered.n_tokens == len(rendered.response_mask) > 0


def test_mask_equals_generation_marks(tmp_path: Path) -> None:
    folder = tiny_tokenizer_folder(tmp_path, CHATML_GENERATION)
    renderer, reference = Renderer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    for messages in random_conversations(40, seed=7):
        expected = reference.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        rendered = renderer.render(messages)
        assert rendered.input_ids.tolist() == expected["input_ids"]
        assert rendered.response_mask.astype(int).tolist() == expected["assistant_masks"]


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> tuple[Renderer, Any]:
    family = next(family for family in FAMILIES if family.template is QWEN3)
    folder = family.folder(tmp_path_factory.mktemp("qwen3"))
    return Renderer.from_folder(folder, settings=CUTS), AutoTokenizer.from_pretrained(folder)


def responses(qwen3: tuple[Renderer, Any], messages: Messages) -> list[str]:
    renderer, reference = qwen3
    rendered = renderer.render(messages)
    assert rendered.input_ids.tolist() == reference.apply_chat_template(messages)["input_ids"]
    return [reference.decode(run) for run in masked_runs(rendered)]


def test_last_reasoning_is_a_response_and_earlier_reasoning_is_gone(qwen3: tuple[Renderer, Any]) -> None:
    question = {"role": "user", "content": "Why?"}
    answer = {"role": "assistant", "content": "<think>\nBecause of it.\n</think>\n\nSo."}
    assert responses(qwen3, [question, answer, question, answer]) == [
        "So.<|im_end|>",
        "<think>\nBecause of it.\n</think>\n\nSo.<|im_end|>",
    ]


def test_injected_empty_reasoning_is_no_response(qwen3: tuple[Renderer, Any]) -> None:
    messages = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "\nSo."}]
    assert responses(qwen3, messages) == ["So.<|im_end|>"]


def test_tool_calls_are_responses(qwen3: tuple[Renderer, Any]) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "text": "<|im_end|>"}}}
    messages: Messages = [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "Two."},
    ]
    renderer, reference = qwen3
    runs = [reference.decode(run) for run in masked_runs(renderer.render(messages))]
    assert runs == [
        '<tool_call>\n{"name": "add", "arguments": {"a": 1, "text": "<|im_end|>"}}\n</tool_call><|im_end|>',
        "Two.<|im_end|>",
    ]


def test_text_before_a_tool_call_is_in_the_response(qwen3: tuple[Renderer, Any]) -> None:
    call = {"type": "function", "function": {"name": "now", "arguments": "{}"}}
    messages: Messages = [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": "Let me look.", "tool_calls": [call]},
        {"role": "tool", "content": "noon"},
    ]
    assert responses(qwen3, messages) == [
        'Let me look.\n<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call><|im_end|>'
    ]


def test_weight_zero_turns_are_context(tmp_path: Path) -> None:
    renderer = Renderer.from_folder(tiny_tokenizer_folder(tmp_path))
    turns: Messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes", "weight": 0}]
    rendered = renderer.render([*turns, {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "No"}])
    assert masked_runs(rendered) == masked_runs(renderer.render([turns[0], {"role": "assistant", "content": "No"}]))
    assert renderer.render(turns).n_response_tokens == 0


def refusal(renderer: Renderer, messages: Messages, match: str) -> str:
    with pytest.raises(RenderError, match=match) as caught:
        renderer.render(messages)
    return caught.value.reason


def test_refusals_name_the_reason(tmp_path: Path) -> None:
    gemma = next(family for family in FAMILIES if family.name == "gemma")
    renderer = Renderer.from_folder(gemma.folder(tmp_path))
    system = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    assert refusal(renderer, [], "at least one message") == "no_messages"
    assert refusal(renderer, system, "System role not supported") == "template_refused"
    assert refusal(renderer, [{"role": "assistant", "content": "a"}], "must alternate") == "template_refused"
    assert refusal(renderer, [{"role": "human", "content": "a"}], "role 'human'") == "unknown_role"
    reserved = [{"role": "user", "content": "ab\ufdd0"}]
    assert refusal(renderer, reserved, r"content holds the reserved .* U\+FDD0 at character 2") == (
        "reserved_characters"
    )
    assert refusal(renderer, [{"role": "user", "content": "a\ud800"}], "not valid Unicode") == "bad_text"


@pytest.mark.parametrize(
    ("template", "match", "reason"),
    [
        (
            "{{ messages | length }}{% for m in messages %}{{ m.content | length }}{% endfor %}",
            r"leaves out the content of messages\[0\]",
            "dropped_content",
        ),
        ("{{ messages[0].content + messages[0].name }}", r"roles \(user, assistant\)", "template_refused"),
        ("{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}", "more than once", "span_not_found"),
        ("{{ strftime_now(7) }}{{ messages[0].content }}", "must be str", "template_refused"),
        ("{{ messages.__class__.__mro__ }}", "unsafe", "template_refused"),
        ("{{ messages.append(1) }}", "unsafe", "template_refused"),
    ],
)
def test_templates_that_cannot_be_used(tmp_path: Path, template: str, match: str, reason: str) -> None:
    renderer = Renderer.from_folder(tiny_tokenizer_folder(tmp_path, template))
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    assert refusal(renderer, messages, match) == reason


def test_a_date_with_a_fallback_uses_the_fallback(tmp_path: Path) -> None:
    template = "{% if strftime_now is defined %}{{ strftime_now('%Y') }}{% else %}{{ '26 Jul 2024' }}{% endif %}"
    renderer = Renderer.from_folder(tiny_tokenizer_folder(tmp_path, template + CHATML))
    fixed = Renderer.from_folder(tiny_tokenizer_folder(tmp_path / "fixed", "26 Jul 2024" + CHATML))
    messages = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
    assert renderer.render(messages).input_ids.tolist() == fixed.render(messages).input_ids.tolist()


def test_a_template_without_closing_token_masks_the_content(tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n\n{% endfor %}"
    folder = tiny_tokenizer_folder(tmp_path, template)
    renderer, reference = Renderer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]
    rendered = renderer.render([*messages, *messages])
    assert [reference.decode(run).strip() for run in masked_runs(rendered)] == ["two", "two"]


def test_a_response_token_at_the_start_has_no_loss() -> None:
    row = Rendered(np.arange(4, dtype=np.int32), np.array([True, False, True, True]))
    assert row.loss_mask.tolist() == [False, True, True]
    assert (row.n_tokens, row.n_response_tokens) == (4, 2)
