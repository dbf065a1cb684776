"""Templates that write every content, but turns in another order or under another role: refused, naming the turn."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from curator.errors import RenderError
from curator.render import Renderer
from tests.chat_templates import FAMILIES, Family
from tests.models import CHATML, tiny_tokenizer_folder

Messages = list[dict[str, Any]]

TALK: Messages = [
    {"role": "user", "content": "Which planet is largest?"},
    {"role": "assistant", "content": "Jupiter is."},
    {"role": "user", "content": "And the smallest?"},
    {"role": "assistant", "content": "Mercury."},
]
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"role": "tool", "content": "8 planets"}
REVERSED = CHATML.replace("in messages", "in messages | reverse")
LONG_REVERSED = REVERSED.replace("reverse %}", "reverse if message['content'] | length < 30 %}")
NEWEST_FIRST = """{%- for m in messages | selectattr('role', 'equalto', 'assistant') %}
{{- '<|im_start|>assistant\n' + m.content + '<|im_end|>\n' }}{%- endfor %}
{%- for m in messages if m.role != 'assistant' %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- endfor %}"""
SORTED = CHATML.replace("in messages", "in messages | sort(attribute='role')")
SWAPPED = CHATML.replace(
    "message['role'] +", "{'user': 'assistant', 'assistant': 'user', 'system': 'system'}[message.role] +"
)
SWAPPED_WITHOUT_PROMPT = SWAPPED.partition("{% if add_generation_prompt")[0]
ALL_AS_USER = CHATML.replace("message['role'] +", "'user' +")
BY_POSITION = CHATML.replace("message['role'] +", "('user' if loop.index0 % 2 == 0 else 'assistant') +")
BY_POSITION_WITHOUT_PROMPT = BY_POSITION.partition("{% if add_generation_prompt")[0]
SYSTEM_AS_USER = CHATML.replace(
    "message['role'] +", "{'user': 'system', 'system': 'user'}.get(message.role, message.role) +"
)
SYSTEM_AS_ANSWER = CHATML.replace("message['role'] +", "{'system': 'assistant'}.get(message.role, message.role) +")
TOOL_AS_ANSWER = SYSTEM_AS_ANSWER.replace("{'system'", "{'tool'")
OTHER_PROMPT = CHATML.replace("<|im_start|>assistant", "### Response:")
LAST_IS_ASSISTANT = CHATML.replace("message['role'] +", "('assistant' if loop.last else 'user') +")


@pytest.mark.parametrize(
    ("source", "messages", "index"),
    [
        (REVERSED, TALK, 1),
        (REVERSED, [SYSTEM, *TALK], 2),
        (LONG_REVERSED, TALK, 1),  # marks change what it does
        (NEWEST_FIRST, TALK, 1),
        (SORTED, TALK, 1),
    ],
)
@pytest.mark.parametrize("careful", [False, True])
def test_turns_in_another_order_are_refused(
    source: str, messages: Messages, index: int, careful: bool, tmp_path: Path
) -> None:
    renderer = Renderer.from_folder(tiny_tokenizer_folder(tmp_path, source), careful=careful)
    with pytest.raises(RenderError, match="not in their order") as caught:
        renderer.render(messages)
    assert caught.value.reason == "turns_reordered"
    assert f"writes messages[{index}]" in caught.value.message
    (counted,) = renderer.count_all([messages])
    assert isinstance(counted, RenderError)
    assert counted.reason == "turns_reordered"


@pytest.mark.parametrize(
    ("source", "messages", "what"),
    [
        (SWAPPED, TALK, "calls it user, and turns of user assistant"),
        (SWAPPED_WITHOUT_PROMPT, TALK, "calls it user, and turns of user assistant"),
        (ALL_AS_USER, TALK, "begins an answer otherwise than the prompt"),
        (BY_POSITION, [SYSTEM, *TALK], "begins it as an answer"),
        (BY_POSITION, TALK, "by the position"),
        (BY_POSITION_WITHOUT_PROMPT, [TALK[0], *TALK], "by the position"),
        (LAST_IS_ASSISTANT, TALK, "by the position"),
        (SYSTEM_AS_USER, [SYSTEM, *TALK], "calls it user, and turns of user system"),
        (SYSTEM_AS_ANSWER, [SYSTEM, *TALK], r"messages\[0\] \(role system\).*begins it as an answer"),
        (TOOL_AS_ANSWER, [*TALK[:2], TOOL, TALK[3]], r"messages\[2\] \(role tool\).*begins it as an answer"),
        (OTHER_PROMPT, TALK, "begins an answer otherwise than the prompt"),
    ],
)
@pytest.mark.parametrize("careful", [False, True])
def test_answers_under_another_role_are_refused(
    source: str, messages: Messages, what: str, careful: bool, tmp_path: Path
) -> None:
    renderer = Renderer.from_folder(tiny_tokenizer_folder(tmp_path, source), careful=careful)
    for _ in range(2):  # what is refused once is not taken for known
        with pytest.raises(RenderError, match=what) as caught:
            renderer.render(messages)
        assert caught.value.reason == "role_not_written"
        (counted,) = renderer.count_all([messages])
        assert isinstance(counted, RenderError)
        assert counted.reason == "role_not_written"


# A system text within the last question (Mistral), a prompt that opens reasoning, contents without any header.
MOVED = """{%- for m in messages if m.role != 'system' %}{%- if m.role == 'user' %}{{- '[INST] ' }}
{%- if messages[0].role == 'system' and loop.revindex <= 2 %}{{- messages[0].content + '\n\n' }}{%- endif %}
{{- m.content + '[/INST]' }}{%- else %}{{- ' ' + m.content + '<|im_end|>' }}{%- endif %}{%- endfor %}"""
PREFILLED = CHATML.replace("assistant\n' }}{% endif", "assistant\n<think>\n' }}{% endif")
BARE = "{%- for m in messages %}{{- m.content + '\n' }}{%- endfor %}"


@pytest.mark.parametrize("source", [CHATML, MOVED, PREFILLED, BARE], ids=["chatml", "moved", "prefilled", "bare"])
@pytest.mark.parametrize("start", [0, 1])
def test_a_right_template_is_transformers_own(source: str, start: int, tmp_path: Path) -> None:
    folder = tiny_tokenizer_folder(tmp_path, source)
    messages = [SYSTEM, *TALK][start:]
    rendered = Renderer.from_folder(folder).render(messages)
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=True)["input_ids"]
    assert rendered.input_ids.tolist() == expected


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_mask_of_known_templates_is_the_answers_alone(family: Family, tmp_path: Path) -> None:
    folder = family.folder(tmp_path)
    rendered = Renderer.from_folder(folder).render(TALK)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert rendered.input_ids.tolist() == tokenizer.apply_chat_template(TALK, tokenize=True)["input_ids"]
    edges = np.flatnonzero(np.diff(np.concatenate(([0], rendered.response_mask, [0])))).reshape(-1, 2)
    trained = [tokenizer.decode(rendered.input_ids[start:end].tolist()) for start, end in edges]
    assert len(trained) == 2
    assert all(turn["content"] in text for turn, text in zip(TALK[1::2], trained, strict=True))
    assert not any(turn["content"] in text for turn in TALK[::2] for text in trained)
