"""What the formats keep, the renderer renders: tool calls, weights, the developer role, thinking."""

from typing import Any

import pytest

from curator.corpus.formats import Row, read_values
from curator.render import Renderer
from tests.chat_templates import FAMILIES
from tests.models import tiny_tokenizer_folder

ASK = {"role": "user", "content": "Add."}


def _kept(record: dict[str, Any]) -> list[dict[str, Any]]:
    (row,) = read_values([record])
    assert isinstance(row, Row), row
    return row.messages


def _trained(renderer: Renderer, messages: list[dict[str, Any]]) -> int:
    return renderer.render(messages).n_response_tokens


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    family = next(family for family in FAMILIES if family.name == "qwen3")
    return Renderer.from_folder(family.folder(tmp_path_factory.mktemp("qwen3")))


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Renderer:
    return Renderer.from_folder(tiny_tokenizer_folder(tmp_path_factory.mktemp("chatml")))


FUNCTION = {"name": "add", "arguments": {"a": 1}}
SPELLINGS: list[dict[str, Any]] = [
    {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": FUNCTION}]},
    {"role": "assistant", "tool_calls": [FUNCTION]},
    {"role": "assistant", "function_call": FUNCTION},
]


def test_every_spelling_of_a_tool_call_is_one_rendering(qwen3: Renderer) -> None:
    rest = [{"role": "tool", "content": "2"}, {"role": "assistant", "content": "Two."}]
    rendered = [qwen3.render(_kept({"messages": [ASK, call, *rest]})) for call in SPELLINGS]
    assert len({tuple(item.input_ids.tolist()) for item in rendered}) == 1
    # The same tokens as without a content at all: the "" of a canonical tool-call turn writes nothing.
    bare = {"role": "assistant", "tool_calls": [{"type": "function", "function": FUNCTION}]}
    assert rendered[0].input_ids.tolist() == qwen3.render([ASK, bare, *rest]).input_ids.tolist()
    without_call = qwen3.render([ASK, *rest])
    assert rendered[0].n_response_tokens > without_call.n_response_tokens > 0


def test_thinking_in_the_content_is_trained(qwen3: Renderer) -> None:
    plain, thinking = (
        _trained(qwen3, _kept({"prompt": "Why?", "completion": text}))
        for text in ("So.", "<think>\nBecause of it.\n</think>\n\nSo.")
    )
    assert thinking > plain > 0


def test_answers_inside_a_prompt_are_not_trained(chatml: Renderer) -> None:
    prompt = [ASK, {"role": "assistant", "content": "A long first answer."}, ASK]
    answer = {"role": "assistant", "content": "Two."}
    context = chatml.render(_kept({"prompt": prompt, "completion": [answer]}))
    whole = chatml.render(_kept({"messages": [*prompt, answer]}))
    assert context.input_ids.tolist() == whole.input_ids.tolist()
    assert context.n_response_tokens == _trained(chatml, _kept({"messages": [ASK, answer]}))
    assert whole.n_response_tokens > context.n_response_tokens


def test_the_developer_role_stays_its_own(chatml: Renderer) -> None:
    answer = {"role": "assistant", "content": "Two."}
    ids = {
        role: chatml.render(
            _kept({"messages": [{"role": role, "content": "Be brief"}, ASK, answer]})
        ).input_ids.tolist()
        for role in ("developer", "system")
    }
    assert ids["developer"] != ids["system"]


def test_text_parts_render_as_one_text(chatml: Renderer) -> None:
    parts = [{"type": "text", "text": "Ad"}, {"type": "text", "text": "d."}]
    answer = {"role": "assistant", "content": "Two."}
    one, other = (
        chatml.render(_kept({"messages": [{"role": "user", "content": content}, answer]})).input_ids.tolist()
        for content in (parts, "Add.")
    )
    assert one == other
