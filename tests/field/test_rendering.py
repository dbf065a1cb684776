"""Nothing that was written is left out of the text in silence; dates, end markers and ids are the template's own."""

import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers.utils.chat_template_utils as chat_template_utils
from transformers import AutoTokenizer

from curator.errors import BadInputError, RenderError
from curator.render import PARTS, Rendered, Renderer, RenderSettings
from curator.store.store import Store
from tests.chat_templates import FAMILIES
from tests.field.fields import kept, template
from tests.models import CHATML, tiny_tokenizer_folder

Messages = list[dict[str, Any]]

TOKENS = ("<｜User｜>", "<｜Assistant｜>", "<think>", "</think>", "<|tool_call|>")
QUESTION, ANSWER = {"role": "user", "content": "Trip?"}, {"role": "assistant", "content": "Done."}
CALL = {"type": "function", "function": {"name": "plan", "arguments": {"x": 1, "city": "Oslo"}}}
OTHER_CALL = {"type": "function", "function": {"name": "book", "arguments": {"seats": 4}}}
FIRST_CALL = """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content }}
{%- if m.tool_calls %}{{- m.tool_calls[0].function | tojson }}{%- endif %}{{- '<|im_end|>\n' }}{%- endfor %}"""
NAMES_ALONE = """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content }}
{%- for call in m.tool_calls or [] %}{{- call.function.name }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endfor %}"""
FIRST_SYSTEM = """{%- if messages[0].role == 'system' %}
{{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}{%- endif %}
{%- for m in messages if m.role != 'system' %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"""
# What DeepSeek's template does: the prompt opens reasoning, which the template cuts from answers.
PREFILLED = template("reasoning_cut").replace("{{- '<｜Assistant｜>' }}", "{{- '<｜Assistant｜><think>\n' }}")
UPPER = CHATML.replace("message['content']", "message['content'] | upper")
# Templates that write the first of equal turns or calls alone.
ONCE = """{%- for m in messages %}{%- if loop.first or m.content != loop.previtem.content%ROLE %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endif %}{%- endfor %}"""
ONCE_A_ROLE = ONCE.replace("%ROLE", " or m.role != loop.previtem.role")
ONCE_OF_ALL = CHATML.replace("in messages", "in messages | unique(attribute='content')")
NOT_WITHIN = ONCE_A_ROLE.replace("m.content != loop", "m.content not in loop")
CALLS_ONCE = """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content }}
{%- for call in m.tool_calls or [] %}{%- if loop.first or call != loop.previtem %}
{{- call.function | tojson }}{%- endif %}{%- endfor %}{{- '<|im_end|>\n' }}{%- endfor %}"""
CALLS_AFTER = """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}
{%- for call in m.tool_calls or [] %}{{- '<|tool_call|>' + (call.function | tojson) + '\n' }}{%- endfor %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"""
ALL_BUT_ONE = """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content }}
{%- for call in m.tool_calls or [] %}{{- call.function.name }}{%- for key, value in call.function.arguments.items() %}
{{- key + '=' }}{%- if key != '%KEY' %}{{- value }}{%- endif %}{%- endfor %}{%- endfor %}
{{- '<|im_end|>\n' }}{%- endfor %}"""
VALUES = {"city": "Oslo", "n": 7, "x": 0.5, "ok": True, "none": None, "sizes": [1, 2]}
WITH_VALUES = {
    "role": "assistant",
    "content": "",
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": VALUES}}],
}
SAID_BY_THE_TEMPLATE = """{{- 'Plan a Trip?' }}{%- for m in messages if m.content | length > 5 or m.role != 'user' %}
{{- '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{%- endfor %}"""


def _folder(path: Path, source: str) -> Path:
    return tiny_tokenizer_folder(path, source, bos="<|endoftext|>", added=TOKENS)


def _refusal(folder: Path, messages: Messages, **settings: Any) -> tuple[str, str]:
    with pytest.raises(RenderError, match="leaves out") as caught:
        Renderer.from_folder(folder, settings=RenderSettings.parse(**settings)).render(messages)
    return caught.value.reason, caught.value.message


def _trained(folder: Path, rendered: Rendered) -> list[str]:
    edges = np.flatnonzero(np.diff(np.concatenate(([0], rendered.response_mask, [0]))))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [tokenizer.decode(rendered.input_ids[start:end].tolist()) for start, end in edges.reshape(-1, 2)]


def _ids(folder: Path, messages: Messages) -> list[int]:
    found: list[int] = AutoTokenizer.from_pretrained(folder).apply_chat_template(messages, tokenize=True)["input_ids"]
    return found


DROPPED: list[tuple[str, Messages, int, str]] = [
    (template("drops_other_roles"), kept("tool_turn_dropped.jsonl")[0], 1, "tool_calls"),
    (template("drops_other_roles"), [QUESTION, {"role": "tool", "content": "ok"}, ANSWER], 1, "content"),
    (template("drops_other_roles"), [{"role": "developer", "content": "e"}, QUESTION, ANSWER], 0, "content"),
    (FIRST_SYSTEM, [QUESTION, ANSWER, {"role": "system", "content": "Now"}, QUESTION, ANSWER], 2, "content"),
    (CHATML, [QUESTION, {"role": "assistant", "content": "Wait", "tool_calls": [CALL]}], 1, "tool_calls"),
    (FIRST_CALL, [QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL, OTHER_CALL]}], 1, "tool_calls"),
    (NAMES_ALONE, [QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL]}], 1, "tool_calls"),
    (CHATML, [QUESTION, {**ANSWER, "reasoning_content": "It fits."}], 1, "reasoning"),
    (template("reasoning_cut"), kept("think_in_content.jsonl")[0], 1, "reasoning"),
    (template("reasoning_cut"), kept("think_literal_tag.jsonl")[0], 1, "reasoning"),
    (PREFILLED, kept("think_in_content.jsonl")[1], 1, "reasoning"),
    (UPPER, [QUESTION, ANSWER], 0, "content"),
    (ONCE_A_ROLE, [QUESTION, QUESTION, ANSWER], 1, "content"),
    (ONCE_A_ROLE, [QUESTION, ANSWER, ANSWER, QUESTION, ANSWER], 2, "content"),
    (ONCE.replace("%ROLE", ""), [QUESTION, {**ANSWER, "content": "Trip?"}, QUESTION, ANSWER], 1, "content"),
    (ONCE_OF_ALL, [QUESTION, ANSWER, QUESTION, ANSWER], 2, "content"),
    (NOT_WITHIN, [{**QUESTION, "content": "A Trip? When?"}, QUESTION, ANSWER], 1, "content"),
    (CALLS_ONCE, [QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]}], 1, "tool_calls"),
    *((ALL_BUT_ONE.replace("%KEY", key), [QUESTION, WITH_VALUES], 1, "tool_calls") for key in VALUES),
    (SAID_BY_THE_TEMPLATE, [QUESTION, ANSWER], 0, "content"),
]


@pytest.mark.parametrize(("source", "messages", "index", "part"), DROPPED)
@pytest.mark.parametrize("careful", [False, True])
def test_what_a_template_leaves_out_is_named(
    source: str, messages: Messages, index: int, part: str, careful: bool, tmp_path: Path
) -> None:
    folder = _folder(tmp_path, source)
    with pytest.raises(RenderError, match="leaves out") as caught:
        Renderer.from_folder(folder, careful=careful).render(messages)
    assert caught.value.reason == f"dropped_{part}"
    assert f"the {part} of messages[{index}] (role {messages[index]['role']})" in caught.value.message


@pytest.mark.parametrize(("source", "messages", "index", "part"), DROPPED)
def test_each_is_accepted_by_name_and_counted(
    source: str, messages: Messages, index: int, part: str, tmp_path: Path
) -> None:
    folder = _folder(tmp_path, source)
    others = [name for name in PARTS if name != part]
    assert _refusal(folder, messages, accept_dropped=others)[0] == f"dropped_{part}"
    rendered = Renderer.from_folder(folder, settings=RenderSettings.parse(accept_dropped=PARTS)).render(messages)
    assert part in rendered.dropped
    assert rendered.input_ids.tolist() == _ids(folder, messages)


def test_a_turn_of_which_nothing_is_written_is_not_trained(tmp_path: Path) -> None:
    folder = _folder(tmp_path, template("drops_other_roles"))
    renderer = Renderer.from_folder(folder, settings=RenderSettings.parse(accept_dropped=["tool_calls", "content"]))
    rendered = renderer.render(kept("tool_turn_dropped.jsonl")[0])
    assert rendered.dropped == ("content", "tool_calls")
    assert _trained(folder, rendered) == ["Done.<|im_end|>"]


@pytest.mark.parametrize("content", ["", "Wait."])
@pytest.mark.parametrize("after", [[], [{"role": "tool", "content": "ok"}, ANSWER]], ids=["last", "followed"])
def test_calls_after_the_end_marker_are_refused(content: str, after: Messages, tmp_path: Path) -> None:
    """They would not be trained; of a turn without a content the end marker alone would."""
    calling = {"role": "assistant", "content": content, "tool_calls": [CALL, OTHER_CALL]}
    messages = [QUESTION, calling, *after]
    renderer = Renderer.from_folder(_folder(tmp_path / "after", CALLS_AFTER))
    with pytest.raises(RenderError, match=r"messages\[1\]: the turn has its tool calls after its end marker") as caught:
        renderer.render(messages)
    assert caught.value.reason == "span_not_found"
    assert _trained(tmp_path / "after", renderer.render([QUESTION, {**calling, "weight": 0}, QUESTION, ANSWER])) == [
        "Done.<|im_end|>"
    ], "of a turn that is not trained nothing is lost"
    # The same with something else behind the marker, after calls that stand before it.
    before = FIRST_CALL.replace("m.tool_calls[0].function", "m.tool_calls").replace("<|im_end|>\n", "<|im_end|>\n--\n")
    folder = _folder(
        tmp_path / "before", before + "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
    )
    (trained, *_) = _trained(folder, Renderer.from_folder(folder).render(messages))
    assert trained.endswith("<|im_end|>")
    assert all(call["function"]["name"] in trained for call in (CALL, OTHER_CALL))


@pytest.mark.parametrize("source", [template("reasoning_cut"), PREFILLED], ids=["cut", "prefilled"])
def test_after_cut_reasoning_the_answer_is_trained(source: str, tmp_path: Path) -> None:
    folder = _folder(tmp_path, source)
    renderer = Renderer.from_folder(folder, settings=RenderSettings.parse(accept_dropped=["reasoning"]))
    for messages, answer in zip(kept("think_in_content.jsonl"), ("5", "Paris."), strict=True):
        rendered = renderer.render(messages)
        assert [text.strip() for text in _trained(folder, rendered)] == [answer + "<|im_end|>"]
        assert rendered.dropped == ("reasoning",)


def test_what_is_written_is_not_refused(tmp_path: Path) -> None:
    """White space that is trimmed, contents written as JSON, moved or repeated: all of it is there."""
    as_json = CHATML.replace("message['content']", "message['content'] | tojson")
    quoted = [{"role": "user", "content": ' "Why\n\\" é? '}, {"role": "assistant", "content": '\n{"a": "b"}'}]
    renderer = Renderer.from_folder(_folder(tmp_path / "json", as_json))
    assert renderer.render(quoted).dropped == ()
    calls = [QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL, OTHER_CALL]}]
    for name in ("arguments_tojson", "calls_list_tojson"):
        assert Renderer.from_folder(_folder(tmp_path / name, template(name))).render(calls).dropped == ()
    qwen3 = next(family for family in FAMILIES if family.name == "qwen3").folder(tmp_path / "qwen3")
    for messages in (*kept("think_in_content.jsonl"), *kept("think_literal_tag.jsonl"), calls):
        rendered = Renderer.from_folder(qwen3).render(messages)
        assert rendered.dropped == ()
        assert rendered.input_ids.tolist() == _ids(qwen3, messages)


def test_equal_turns_that_are_all_written_are_not_refused(tmp_path: Path) -> None:
    """Also where marks would change what the template does."""
    marks_change_it = CHATML.replace("in messages", "in messages if message.content | length < 6")
    for number, source in enumerate((CHATML, marks_change_it)):
        folder = _folder(tmp_path / str(number), source)
        for messages in ([QUESTION, QUESTION, ANSWER, ANSWER], [{**QUESTION, "content": "user"}, ANSWER, ANSWER]):
            rendered = Renderer.from_folder(folder).render(messages)
            assert rendered.dropped == ()
            assert rendered.input_ids.tolist() == _ids(folder, messages)


def test_values_of_every_kind_that_are_written_are_not_refused(tmp_path: Path) -> None:
    sources = (ALL_BUT_ONE, ALL_BUT_ONE.replace("{{- value }}", "{{- value | tojson }}"), template("calls_list_tojson"))
    for number, source in enumerate(sources):
        folder = _folder(tmp_path / str(number), source)
        rendered = Renderer.from_folder(folder).render([QUESTION, WITH_VALUES])
        assert rendered.dropped == ()
        assert rendered.input_ids.tolist() == _ids(folder, [QUESTION, WITH_VALUES])


@pytest.mark.parametrize("source", ["{{- ['a', 'b'] | random }}", "{{- lipsum(1) }}"])
def test_a_template_that_writes_something_else_each_time_is_refused(source: str, tmp_path: Path) -> None:
    with pytest.raises(RenderError, match=r"random|lipsum"):
        Renderer.from_folder(_folder(tmp_path, source + CHATML)).render([QUESTION, ANSWER])


def test_an_empty_think_block_holds_nothing_to_lose(tmp_path: Path) -> None:
    messages = [QUESTION, {"role": "assistant", "content": "<think>\n\n</think>\n\nDone."}]
    assert Renderer.from_folder(_folder(tmp_path, template("reasoning_cut"))).render(messages).dropped == ()


@pytest.mark.parametrize("arguments", ['{"reasoning": "Two days fit.", "city": "Oslo", "answer": 2}', "{}", ""])
@pytest.mark.parametrize("name", ["arguments_tojson", "calls_list_tojson", "function_tojson"])
def test_arguments_that_are_text_become_the_object_that_the_template_wants(
    name: str, arguments: str, tmp_path: Path
) -> None:
    folder = tiny_tokenizer_folder(tmp_path, template(name), bos="<|endoftext|>", added=("[INST]", *TOKENS))
    text, parsed = (
        [{**turn, "tool_calls": [_with(turn["tool_calls"][0], form)]} if "tool_calls" in turn else turn
         for turn in kept("tool_args_text.jsonl")[0]]
        for form in (arguments, json.loads(arguments or "{}"))
    )  # fmt: skip
    rendered = Renderer.from_folder(folder).render(text).input_ids.tolist()
    assert rendered == Renderer.from_folder(folder).render(parsed).input_ids.tolist() == _ids(folder, parsed)


def _with(call: dict[str, Any], arguments: Any) -> dict[str, Any]:
    return {**call, "function": {**call["function"], "arguments": arguments}}


ITEMS = """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content }}{%- for c in m.tool_calls or [] %}
{{- c.function.name }}{%- for key, value in c.function.arguments | items %}{{- key ~ '=' ~ value }}{%- endfor %}
{%- endfor %}{{- '<|im_end|>\n' }}{%- endfor %}"""
TEXTS = """{%- for m in messages %}{{- '<|im_start|>' + m.role + '\n' + m.content }}{%- for c in m.tool_calls or [] %}
{{- c.function.name + ' ' + c.function.arguments }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endfor %}"""
PRINTS = TEXTS.replace("+ c.function.arguments", "~ c.function.arguments")


@pytest.mark.parametrize(("source", "wants"), [(ITEMS, dict), (TEXTS, str), (PRINTS, str)])
def test_templates_get_the_form_that_they_are_made_for(source: str, wants: type, tmp_path: Path) -> None:
    folder = _folder(tmp_path, source)
    renderer = Renderer.from_folder(folder)
    value = {"b": "é", "a": 1}
    text = json.dumps(value, ensure_ascii=False)
    forms = [
        [QUESTION, {"role": "assistant", "content": "", "tool_calls": [_with(CALL, form)]}] for form in (value, text)
    ]
    expected = _ids(folder, forms[0] if wants is dict else forms[1])
    assert [renderer.render(form).input_ids.tolist() for form in forms] == [expected, expected]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"a": 1, "a": 2}', "have the key 'a' twice"),
        ('{"x": {"b": 1, "b": 1}}', "have the key 'b' twice"),
        ('{"a": NaN}', "hold NaN, which is not JSON"),
        ('{"a": -Infinity}', "hold -Infinity, which is not JSON"),
    ],
)
def test_text_that_no_object_holds_is_refused_where_an_object_is_written(text: str, match: str, tmp_path: Path) -> None:
    messages = [QUESTION, {"role": "assistant", "content": "", "tool_calls": [_with(CALL, text)]}]
    with pytest.raises(RenderError, match=match):
        Renderer.from_folder(_folder(tmp_path / "object", template("arguments_tojson"))).render(messages)
    as_text = _folder(tmp_path / "text", TEXTS)
    assert Renderer.from_folder(as_text).render(messages).input_ids.tolist() == _ids(as_text, messages)


def test_a_template_that_takes_both_gets_what_was_written(tmp_path: Path) -> None:
    qwen3 = next(family for family in FAMILIES if family.name == "qwen3").folder(tmp_path)
    for arguments in ({"b": 1, "a": 2}, '{"b":1,  "a":2}'):
        messages = [QUESTION, {"role": "assistant", "content": "", "tool_calls": [_with(CALL, arguments)]}]
        assert Renderer.from_folder(qwen3).render(messages).input_ids.tolist() == _ids(qwen3, messages)


GUARDED = (
    """{%- if strftime_now is defined %}{%- set day = strftime_now('%d %b %Y') %}{%- else %}
{%- set day = '26 Jul 2024' %}{%- endif %}{{- day }}"""
    + CHATML
)


def _on(day: datetime.date, folder: Path, messages: Messages, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The ids that transformers gives on a day."""

    class Clock(datetime.datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.datetime(day.year, day.month, day.day)

    with monkeypatch.context() as patched:
        patched.setattr(chat_template_utils, "datetime", Clock)
        chat_template_utils._compile_jinja_template.cache_clear()
        found = _ids(folder, messages)
    chat_template_utils._compile_jinja_template.cache_clear()
    return found


@pytest.mark.parametrize("source", [template("date_unguarded"), GUARDED], ids=["unguarded", "guarded"])
def test_a_date_is_one_that_is_set_and_part_of_the_identity(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, messages = _folder(tmp_path / "model", source), [QUESTION, ANSWER]
    default, set_to = (Renderer.from_folder(folder, settings=RenderSettings.parse(day)) for day in (None, "2031-02-03"))
    assert default.render(messages).input_ids.tolist() == _on(datetime.date(2024, 7, 26), folder, messages, monkeypatch)
    assert set_to.render(messages).input_ids.tolist() == _on(datetime.date(2031, 2, 3), folder, messages, monkeypatch)
    assert default.renderer_id != set_to.renderer_id
    store = Store(tmp_path / "store").open()
    again = Renderer.from_store(store, set_to.save(store))
    assert again.settings == set_to.settings
    assert again.render(messages).input_ids.tolist() == set_to.render(messages).input_ids.tolist()


def test_a_date_that_no_template_writes_changes_nothing(tmp_path: Path) -> None:
    folder = _folder(tmp_path, CHATML)
    ids = {Renderer.from_folder(folder, settings=RenderSettings.parse(day)).renderer_id for day in (None, "2031-02-03")}
    assert len(ids) == 1


@pytest.mark.parametrize("day", ["2024-7-26", "20240726", "26.07.2024", "2024-02-30", "", "today"])
def test_what_is_no_day_is_refused(day: str) -> None:
    with pytest.raises(BadInputError, match="give a day as YYYY-MM-DD"):
        RenderSettings.parse(day)


# As in Harmony: every message ends in one token, the last answer in another.
TWO_ENDS = """{%- for m in messages %}{{- '<|start|>' + m.role + '<|message|>' + m.content }}
{%- if loop.last and m.role == 'assistant' %}{{- '<|return|>' }}{%- else %}{{- '<|end|>' }}{%- endif %}{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start|>assistant' }}{%- endif %}"""
LAST_END_ALONE = TWO_ENDS.replace("{{- '<|end|>' }}", "")


@pytest.mark.parametrize(("source", "end"), [(TWO_ENDS, "<|end|>"), (LAST_END_ALONE, "")], ids=["two", "last_alone"])
@pytest.mark.parametrize("careful", [False, True])
def test_end_markers_that_differ_by_place_are_all_in_the_mask(
    source: str, end: str, careful: bool, tmp_path: Path
) -> None:
    specials = ("<|endoftext|>", "<|start|>", "<|message|>", "<|end|>", "<|return|>")
    folder = tiny_tokenizer_folder(tmp_path, source, specials=specials, eos="<|return|>")
    messages = [QUESTION, {"role": "assistant", "content": "One."}, QUESTION, {"role": "assistant", "content": "Two."}]
    renderer = Renderer.from_folder(folder, careful=careful)
    assert _trained(folder, renderer.render(messages)) == [f"One.{end}", "Two.<|return|>"]
    assert _trained(folder, renderer.render([*messages, QUESTION])) == [f"One.{end}", f"Two.{end}"]


@pytest.mark.parametrize(
    ("added", "decoder"),
    [
        ({"<doc_sep>": 700, "<doc_end>": 701}, None),
        ({"<doc_end>": 950, "<doc_sep>": 900}, None),  # an order, not ids
        ({"the": 3, "<doc_sep>": 4}, None),  # tokenizer.json has another token under 3
        ({"Ġthe": 800, "<doc_sep>": 801}, None),
        ({"<doc_sep>": 900}, {"0": {"content": "<|endoftext|>", "special": True}}),  # then the file is not read
    ],
)
def test_added_tokens_have_the_ids_that_transformers_gives_them(
    added: dict[str, int], decoder: dict[str, Any] | None, tmp_path: Path
) -> None:
    folder = tiny_tokenizer_folder(tmp_path)
    (folder / "added_tokens.json").write_text(json.dumps(added))
    if decoder is not None:
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"added_tokens_decoder": decoder}))
    for messages in kept("t_addtok.jsonl"):
        turns = [{**turn, "content": turn["content"] + " the <doc_end>"} for turn in messages]
        assert Renderer.from_folder(folder).render(turns).input_ids.tolist() == _ids(folder, turns)
