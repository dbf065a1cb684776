"""The quick way of the renderer (skeletons of templates, units of text) against the careful one, over odd input."""

import functools
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unicodedata import is_normalized

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from curator.errors import RenderError
from curator.render import Renderer
from curator.render import pieces as pieces_module
from curator.render import units as units_module
from curator.render.mask import response_mask
from curator.render.units import (
    _SPLITS,
    UnitEncoder,
    has_units,
    joined,
)
from tests.chat_templates import FAMILIES
from tests.models import CHATML, random_conversations, tiny_tokenizer_folder

Messages = list[dict[str, Any]]
Row = tuple[Any, ...]

# White space of every kind, what Python takes for it and Unicode does not, marks that combine, contractions, line
# ends after punctuation: whatever the tokenizers' rules of splitting tell apart.
ODD = (
    " ", "  ", "\n", "\n\n", "\t", "\r", "\x0b", "\x1c", "\x1f", "\x85", "\xa0", "\u1680", "\u2003", "\u200b", "\u2028",
    "\u3000", "\u180e", "a", "B", "the", "you", "'s", "'LL", "7", "2024", "٣", ".", ",\n", "!\n \n", "/", "-", "_", "é",
    "e\u0301", "\u0301", "東", "\U0001f600", "<|im_end|>", "<|im_start|>", "<|", "im_end|>", "</s>", "<think>",
    "</think>", "<tool_response>", "</tool_response>", "[INST]", "<|user|>", "<end_of_turn>", "<|eot_id|>", "\x00", "#",
    "think", "<", "</", ">", "the fox", "(a", "word", "ſ", "K",
)  # fmt: skip
TEXTS = st.one_of(
    st.lists(st.sampled_from(ODD), max_size=12).map("".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12),
    st.text(st.characters(max_codepoint=127), max_size=30),
    st.sampled_from(["", " ", "\n", " two words ", "two words", "<|im_end|>", "</s>", "\ufdd0", "\ud800"]),
)


@st.composite
def conversations(draw: st.DrawFn) -> Messages:
    roles = draw(
        st.sampled_from(["ua", "sua", "uaua", "suauau", "a", "u", "uu", "aa", "suaa", "uat", "suauaua", "dua"])
    )
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "d": "developer"}
    messages: Messages = [{"role": names[role], "content": draw(TEXTS)} for role in roles]
    if draw(st.integers(0, 4)) == 0:
        messages[-1]["weight"] = draw(st.sampled_from([0, 1]))
    if draw(st.integers(0, 9)) == 0:
        messages[0]["name"] = draw(TEXTS)
    return messages


def of(folder: Path) -> tuple[Renderer, Renderer]:
    return Renderer.from_folder(folder), Renderer.from_folder(folder, careful=True)


@functools.cache
def family(name: str) -> tuple[Renderer, Renderer]:
    with tempfile.TemporaryDirectory() as folder:
        return of(next(family for family in FAMILIES if family.name == name).folder(Path(folder)))


def outcomes(renderer: Renderer, rows: Sequence[Messages], **how: Any) -> list[Row]:
    return [
        (found.reason, found.message)
        if isinstance(found, RenderError)
        else (
            found.input_ids.tolist(),
            found.response_mask.tolist(),
            None if found.token_classes is None else found.token_classes.tolist(),
        )
        for found in renderer.render_all(rows, **how)
    ]


def counts(renderer: Renderer, rows: Sequence[Messages], rule: Any, *, quick: bool) -> list[Row]:
    """Tokens, response tokens and left out parts of each row: as counted, or from the rendered rows."""
    if quick:
        return [
            (found.reason, found.message) if isinstance(found, RenderError) else tuple(found)
            for found in renderer.count_all(rows, rule)
        ]
    return [
        (found.reason, found.message)
        if isinstance(found, RenderError)
        else (len(found.input_ids), int(found.response_mask[1:].sum()), found.dropped)
        for found in renderer.render_all(rows, rule)
    ]


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_both_ways_give_the_same_tokens_and_masks(name: str) -> None:
    quick, careful = family(name)

    @settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
    @given(st.lists(conversations(), min_size=1, max_size=4), st.sampled_from(["all", "last"]), st.booleans())
    def check(rows: list[Messages], rule: Any, classes: bool) -> None:
        expected = outcomes(careful, rows, mask_rule=rule, classes=classes)
        assert outcomes(quick, rows, mask_rule=rule, classes=classes) == expected
        assert [outcomes(quick, [row], mask_rule=rule, classes=classes)[0] for row in rows] == expected
        assert counts(quick, rows, rule, quick=True) == counts(careful, rows, rule, quick=False)

    check()


@pytest.mark.parametrize("name", [family.name for family in FAMILIES])
def test_every_family_has_skeletons(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Usual rows must not fall back: the template runs for each new sequence of roles, and for no row after it."""
    quick, careful = family(name)
    rows = [[turn for turn in row if turn["role"] != "system"] for row in random_conversations(12)]
    assert outcomes(quick, rows) == outcomes(careful, rows)
    expected = counts(quick, rows, "all", quick=True)
    monkeypatch.setattr(quick._template, "_compiled", None)
    assert outcomes(quick, rows) == outcomes(careful, rows)
    assert counts(quick, rows, "all", quick=True) == expected == counts(careful, rows, "all", quick=False)


READS_CONTENTS = (
    "{{ m.content | length }}",
    "{{ m.content | upper }}",
    "{{ m.content | tojson }}",
    "{{ m.content | default('x') | replace('a', 'b') }}",
    "{{ m.content ~ '!' }}",
    "{{ m.content[0:2] }}",
    "{{ m.content.split(' ')[0] }}",
    "{{ '%s' % m.content }}",
    "{{ '{}'.format(m.content) }}",
    "{{ 'same' if m.content == messages[0].content }}",
    "{{ 'listed' if m.content in ['two words', ''] }}",
    "{{ 'known' if messages[0].content is defined and messages[0].content.nothing is defined }}",
    "{{ 'empty' if not m.content }}{{ m.content }}",
    "{{ m.content if m.content is string else 'none' }}",
    "{{ 'long' if m.content is iterable and m.content is sequence and m.content is not mapping }}",
    "{{ 'lower' if m.content is lower }}",
    "{{ 'number' if m.content | int(0) }}",
    "{{ 'think' if '<think>' in m.content }}{{ m.content }}",
    "{{ m.content.lstrip('#').rstrip('\\n') }}",
    "{{ m.content.startswith('a') }}{{ (m.content + 'b').endswith('ab') }}",
    "{{ ('x' + m.content) | trim }}",
    "{{ m | length }}{{ m | string }}",
    "{{ m.items() | list }}",
    "{{ {m.content: 1} | length }}",
    "{{ [m.content] | join }}",
    "{{ m.content is sameas m.content }}",
    "{{ m.content * 2 }}",
    "{{ 'later' if m.content > 'b' }}",
    "{% set kept %}{{ m.content }}{% endset %}{{ kept | length }}",
    "{% macro say(x) %}{{ x }}{% endmacro %}{{ say(m.content) | length }}",
    "{% filter upper %}{{ m.content }}{% endfilter %}",
    "{% for c in m.content %}{{ c }},{% endfor %}",
    "{% for one in [1] recursive %}{{ m.content }}{% endfor %}",
    "{% set ns = namespace(x=m.content) %}{{ ns.x }}{{ ns.x | length }}",
    "{% if loop.changed(m.content) %}new{% endif %}{{ m.content }}",
    "{{ (messages | map(attribute='content') | unique | list) | length }}",
    "{{ messages | selectattr('content', 'equalto', 'two words') | list | length }}",
    "{{ m.weight }}{{ m.content }}",
    "{{ m.content }}{{ m.content }}",
    "{{ '' if m.role == 'system' else m.content }}",
    "{{ '<|im_' + m.content + '|>' }}",
)


@pytest.mark.parametrize("piece", READS_CONTENTS)
def test_a_template_that_reads_contents_gives_the_same_as_well(piece: str, tmp_path: Path) -> None:
    loop = "{% for m in messages %}{{ '<|im_start|>' + m.role }} " + piece + "{{ '<|im_end|>' }}{% endfor %}"
    quick, careful = of(tiny_tokenizer_folder(tmp_path, loop))
    texts = ["", " ", "two words", "Two words ", "ab", "#a\n", "<think>", "7", "<|im_end|>", "end", "start", "a"]
    rows: list[Messages] = [
        [{"role": "user", "content": one}, {"role": "assistant", "content": other}, {"role": "user", "content": one}]
        for one in texts
        for other in texts
    ]
    weight: dict[str, Any] = {"weight": 1}
    rows += [[row[0] | weight, row[1]] for row in rows[::7]]
    rows += [[row[0], row[1] | weight] for row in rows[::5]]
    assert outcomes(quick, rows) == outcomes(careful, rows)
    for rule in ("all", "last"):
        assert counts(quick, rows, rule, quick=True) == counts(careful, rows, rule, quick=False)


def pre_tokenizer_of(kind: str) -> Any:
    if kind == "digits":
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)])
    if kind == "gpt2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Split(Regex(kind), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def plain_tokenizer(**options: Any) -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        tiny_tokenizer_folder(Path(folder), CHATML, added=("<think>", "</think>", "  ", "\n\n", "<<"), **options)
        return Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))


def document(tokenizer: Tokenizer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(tokenizer.to_str())
    return found


@pytest.mark.parametrize("kind", ["gpt2", "digits", *sorted(_SPLITS)])
def test_units_encode_as_the_whole_text_does(kind: str) -> None:
    tokenizer = plain_tokenizer()
    tokenizer.pre_tokenizer = pre_tokenizer_of(kind)
    tokenizer.normalizer = normalizers.NFC()
    assert has_units(document(tokenizer))
    encoder = UnitEncoder(tokenizer, document(tokenizer))

    @settings(deadline=None, max_examples=60)
    @given(st.lists(TEXTS.filter(lambda text: text not in ("\ufdd0", "\ud800")), min_size=1, max_size=4))
    def check(texts: list[str]) -> None:
        texts = ["".join(char for char in text if not "\ufdd0" <= char <= "\ufdef") for text in texts]
        whole = joined([tokenizer.encode(text, add_special_tokens=False) for text in texts], texts)
        found = encoder.encode(texts)
        if found is None:  # what NFC composes has no places of its own; the whole texts are encoded then
            assert not all(is_normalized("NFC", text) for text in texts)
            return
        rows = [slice(*found.bounds[row : row + 2]) for row in range(len(texts))]
        for one, other in ((found.ids_N, whole.ids_N), (found.bounds, whole.bounds)):
            np.testing.assert_array_equal(one, other)
        for row, part in enumerate(rows):
            for one, other in ((found.starts_N, whole.starts_N), (found.ends_N, whole.ends_N)):
                np.testing.assert_array_equal(one[part] - found.origins[row], other[part] - whole.origins[row])

    check()


def changed(**fields: Any) -> dict[str, Any]:
    return document(plain_tokenizer()) | fields


BYTES: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


@pytest.mark.parametrize(
    "other",
    [
        lambda: changed(normalizer={"type": "Lowercase"}),
        lambda: changed(normalizer={"type": "Prepend", "prepend": "_"}),
        lambda: changed(pre_tokenizer=None),
        lambda: changed(pre_tokenizer=BYTES),  # nothing splits
        lambda: changed(pre_tokenizer=BYTES | {"use_regex": True, "add_prefix_space": True}),
        lambda: changed(
            pre_tokenizer={"type": "Metaspace", "replacement": "_", "prepend_scheme": "first", "split": True}
        ),
        lambda: changed(
            pre_tokenizer={
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": r"\w+ \w+"}, "behavior": "Isolated", "invert": False},
                    BYTES | {"use_regex": True},
                ],
            }
        ),
        lambda: changed(
            added_tokens=[{"id": 0, "content": "<x>", "special": True, "lstrip": True, "rstrip": False,
                           "single_word": False, "normalized": False}]
        ),
        lambda: changed(
            added_tokens=[{"id": 0, "content": "new york", "special": False, "lstrip": False, "rstrip": False,
                           "single_word": False, "normalized": False}]
        ),
        lambda: changed(
            added_tokens=[{"id": 0, "content": "a<x>", "special": False, "lstrip": False, "rstrip": False,
                           "single_word": False, "normalized": False}]
        ),
        lambda: document(plain_tokenizer(kind="metaspace")),
    ],
)  # fmt: skip
def test_other_tokenizers_encode_whole_texts(other: Callable[[], dict[str, Any]]) -> None:
    assert has_units(document(plain_tokenizer()))
    assert not has_units(other())


def test_units_are_forgotten_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units_module, "MAX_UNITS", 5)
    monkeypatch.setattr(pieces_module, "MAX_PIECES", 5)
    tokenizer = plain_tokenizer()
    encoder = UnitEncoder(tokenizer, document(tokenizer))
    for start in range(0, 40, 3):
        texts = [f"word{start} and word{start + 1} and some, of the" for _ in range(2)] + ["x" * 100]
        found = encoder.encode(texts)
        assert found is not None
        assert found.ids_N.tolist() == [i for text in texts for i in tokenizer.encode(text).ids]
        assert len(encoder._kept) <= 9
        assert b"x" * 100 not in encoder._kept
        assert len(encoder._pieces._kept) <= 5
        assert "x" * 100 not in encoder._pieces._kept


@settings(deadline=None, max_examples=200)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3), st.booleans()), max_size=12),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 8)), max_size=3),
)
def test_the_mask_is_the_tokens_that_share_a_character_with_a_span(
    steps: list[tuple[int, int, bool]], gaps: list[tuple[int, int]]
) -> None:
    """Against the definition token by token; pieces of one character share its place."""
    ends = np.cumsum([step for step, _, _ in steps], dtype=np.int64)
    starts = np.maximum.accumulate(ends - [length for _, length, _ in steps]) if steps else ends
    is_control = np.array([control for _, _, control in steps], dtype=np.bool_)
    spans, at = [], 0
    for gap, length in gaps:
        spans.append((at + gap, at + gap + length))
        at += gap + length
    expected = [
        any(end > first and start < last and not (control and start < first) for first, last in spans)
        for start, end, control in zip(starts.tolist(), ends.tolist(), is_control.tolist(), strict=True)
    ]
    found = response_mask(starts, ends, is_control, np.array(spans, dtype=np.int64).reshape(-1, 2))
    assert found.tolist() == expected
