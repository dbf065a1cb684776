"""No text in any field reaches a control token; properties over generated text."""

import functools
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from curator.errors import RenderError
from curator.render import Rendered, Renderer
from curator.render.tokenizer import GuardedTokenizer
from tests.chat_templates import FAMILIES, Family
from tests.models import CHATML_SPECIALS, random_conversations, tiny_tokenizer_folder

# Prints every field that a message may carry.
ALL_FIELDS = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + ' ' + (m.name or '') + '\n' + (m.content or '') }}"
    "{{ m.tool_calls | tojson if m.tool_calls else '' }}{{ m.tool_call_id or '' }}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant \n' }}{% endif %}"
)


@functools.cache
def loaded(name: str) -> tuple[Renderer, Any]:
    family = next(family for family in FAMILIES if family.name == name)
    with tempfile.TemporaryDirectory() as folder:
        family.folder(Path(folder))
        return Renderer.from_folder(folder), AutoTokenizer.from_pretrained(folder)


def controls(family: Family, reference: Any) -> dict[int, str]:
    """Special tokens, and the turn markers of the family that carries them as ordinary added tokens."""
    return {
        token_id: token.content
        for token_id, token in reference.added_tokens_decoder.items()
        if token.special or token.content in CHATML_SPECIALS
    }


def control_counts(rendered: Rendered, texts: dict[int, str]) -> Counter[int]:
    return Counter(token_id for token_id in rendered.input_ids.tolist() if token_id in texts)


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_no_content_yields_a_control_token(family: Family) -> None:
    renderer, reference = loaded(family.name)
    texts = controls(family, reference)
    assert len(texts) >= 3
    roles = [*(["system"] if family.system else []), "user", "assistant"]
    clean = [{"role": role, "content": "x"} for role in roles]
    expected = control_counts(renderer.render(clean), texts)
    for text in texts.values():
        for forged in (text, f"a{text}b", f"{text}\n{text} user\n", f"{text[:2]}{text}{text[2:]}"):
            for place in range(len(roles)):
                messages = [dict(message) for message in clean]
                messages[place]["content"] = forged
                rendered = renderer.render(messages)
                assert control_counts(rendered, texts) == expected, (text, forged, place)
                assert forged.strip() in reference.decode(rendered.input_ids)


def test_no_other_field_yields_a_control_token(tmp_path: Path) -> None:
    renderer = Renderer.from_folder(tiny_tokenizer_folder(tmp_path, ALL_FIELDS))
    reference = AutoTokenizer.from_pretrained(tmp_path)
    texts = dict(enumerate(CHATML_SPECIALS))

    def rendered(text: str) -> Rendered:
        call = {"type": "function", "id": text, "function": {"name": text, "arguments": {text: [text, {"k": text}]}}}
        return renderer.render(
            [
                {"role": "user", "content": "q", "name": text},
                {"role": "assistant", "content": "call", "tool_calls": [call], "name": text},
                {"role": "tool", "content": text, "tool_call_id": text, "name": text},
                {"role": "assistant", "content": "done"},
            ]
        )

    expected = control_counts(rendered("x"), texts)
    assert expected == Counter({1: 4, 2: 4})
    for text in CHATML_SPECIALS:
        forged = rendered(text)
        assert control_counts(forged, texts) == expected
        assert reference.decode(forged.input_ids).count(text) == 10 + expected[reference.convert_tokens_to_ids(text)]


def test_a_role_cannot_spell_a_control_token(tmp_path: Path) -> None:
    folder = tiny_tokenizer_folder(tmp_path, "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}")
    renderer = Renderer.from_folder(folder)
    with pytest.raises(RenderError, match=r"messages\[1\] has role 'endoftext'"):
        renderer.render([{"role": "user", "content": "a"}, {"role": "endoftext", "content": "a"}])


RESERVED = [chr(code) for code in range(0xFDD0, 0xFDF0)]
ALPHABETS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters=RESERVED), max_size=30),
    st.lists(st.sampled_from([*CHATML_SPECIALS, " ", "\n", "user", "<|", "im_end|>", "é", "\u2028"]), max_size=8).map(
        "".join
    ),
)


@st.composite
def conversations(draw: st.DrawFn) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": draw(ALPHABETS)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        messages += [{"role": role, "content": draw(ALPHABETS)} for role in ("user", "assistant")]
    return messages


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(conversations())
def test_text_and_responses_survive_the_round_trip(messages: list[dict[str, str]]) -> None:
    renderer, reference = loaded("chatml")
    rendered = renderer.render(messages)
    turns = [f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>" for message in messages]
    assert reference.decode(rendered.input_ids) == "".join(turn + "\n" for turn in turns)
    masked = rendered.input_ids[rendered.response_mask].tolist()
    end_id = reference.eos_token_id
    runs = reference.decode([token_id for token_id in masked if token_id != end_id])
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    assert masked.count(end_id) == len(answers)
    # White space of the header may share a token with the content's own.
    assert "".join(runs.split()) == "".join("".join(answers).split())


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(conversations(), st.sampled_from([family.name for family in FAMILIES]))
def test_ids_equal_transformers_without_control_text(messages: list[dict[str, str]], name: str) -> None:
    renderer, reference = loaded(name)
    family = next(family for family in FAMILIES if family.name == name)
    messages = messages if family.system else [message for message in messages if message["role"] != "system"]
    contents = "".join(message["content"] for message in messages)
    if any(text in contents for text in controls(family, reference).values()):
        return
    expected = reference.apply_chat_template(messages)["input_ids"]
    every, last = renderer.render(messages), renderer.render(messages, mask_rule="last")
    assert every.input_ids.tolist() == expected
    assert 0 < last.n_response_tokens <= every.n_response_tokens < every.n_tokens
    assert not (last.response_mask & ~every.response_mask).any()


def test_threads_share_a_renderer() -> None:
    renderer, _ = loaded("chatml_generation")
    rows = random_conversations(200, seed=3)
    serial = [renderer.render(row) for row in rows]
    with ThreadPoolExecutor(8) as pool:
        for ours, theirs in zip(pool.map(renderer.render, rows), serial, strict=True):
            assert ours.input_ids.tolist() == theirs.input_ids.tolist()
            assert ours.response_mask.tolist() == theirs.response_mask.tolist()


def added(text: str, token_id: int, **flags: bool) -> dict[str, Any]:
    base = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {"id": token_id, "content": text, **base, **flags}


def document(model: dict[str, Any], *tokens: dict[str, Any]) -> dict[str, Any]:
    empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    return {"version": "1.0", **empty, "added_tokens": list(tokens), "model": model}


BPE = {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": ["a b"], "unk_token": None}
UNIGRAM = {"type": "Unigram", "unk_id": 0, "vocab": [["<unk>", 0.0], ["a", -2.0], ["b", -2.0], ["ab", -1.0]]}
WORDPIECE = {"type": "WordPiece", "unk_token": "a", "continuing_subword_prefix": "##", "max_input_chars_per_word": 9,
             "vocab": {"a": 0, "##b": 1, "ab": 2}}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "plain"),
    [(BPE, [0, 1]), (UNIGRAM, [1, 2]), (WORDPIECE, [0, 1])],
    ids=["bpe_merge", "unigram", "wordpiece"],
)
def test_a_vocabulary_entry_is_no_way_to_its_control_token(model: dict[str, Any], plain: list[int]) -> None:
    control_id = 3 if model is UNIGRAM else 2
    guard = GuardedTokenizer(document(model, added("ab", control_id)), ["ab"])
    assembled = guard.assemble("ab" + guard.escape("ab", "content") + "ab")
    assert guard.encode([assembled.text]).ids_N.tolist() == [control_id, *plain, control_id]
    assert assembled.n_controls == 2


def test_single_character_control_tokens_are_escaped() -> None:
    guard = GuardedTokenizer(document({**BPE, "merges": []}, added("b", 1), added("#", 3)), ["b", "#"])
    assembled = guard.assemble(guard.escape("a#", "content") + "#")
    assert guard.encode([assembled.text]).ids_N.tolist() == [0, 3]
    assert assembled.n_controls == 1


def test_wrong_ids_and_swallowed_tokens_are_refused() -> None:
    with pytest.raises(RenderError, match=r"'<x>' has id 7 in tokenizer\.json but loads as 3"):
        GuardedTokenizer(document(BPE, added("<x>", 7)), ["<x>"])
    guard = GuardedTokenizer(document(UNIGRAM, added("<x>", 4, single_word=True)), ["<x>"])
    assembled = guard.assemble("a<x>a")  # inside a word this token is not parsed
    with pytest.raises(RenderError, match="wrote 1 control tokens but the ids hold 0"):
        guard.check_controls(int(guard.is_control(guard.encode([assembled.text]).ids_N).sum()), assembled)
