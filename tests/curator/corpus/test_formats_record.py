"""The quick way through plain records gives what the careful way gives, byte for byte."""

import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import example, given, settings

from curator.corpus.formats.json_decode import UndecodableError, decode
from curator.corpus.formats.record import read_plain, read_record
from curator.messages import dump_messages

# Texts with all that canonical form changes or a JSON writer escapes.
TEXTS = st.text(st.sampled_from('ab \n\r"\\e\u0301é\u0000\u200b\u0338<Å\u212b日😀'), max_size=8)
ROLES = st.sampled_from(["system", "developer", "user", "assistant", "tool", "function", "human"])
TURNS = st.lists(st.fixed_dictionaries({"role": ROLES, "content": TEXTS}), min_size=1, max_size=4)
OTHER = st.dictionaries(
    st.sampled_from(["id", "domain", "harm", "source", "x", "system", "tools"]),
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    max_size=3,
)


def _careful(data: bytes) -> Any:
    try:
        read = read_record(decode(data, 0))
    except UndecodableError:
        return None
    if read.problems:
        return None
    return dump_messages(read.messages).encode(), read.labels, read.source_id, read.source


def _check(data: bytes) -> bool:
    row = read_plain(data, 1, 1)
    if row is not None:
        assert (row.json, row.labels, row.source_id, row.source) == _careful(data)
        assert json.loads(row.json) == row.messages
    return row is not None


@settings(deadline=None)
@given(TURNS, OTHER, st.booleans())
def test_both_ways_agree(turns: list[dict[str, str]], other: dict[str, Any], ascii_only: bool) -> None:
    for text in (json.dumps({**other, "messages": turns}, ensure_ascii=ascii_only), json.dumps({"messages": turns})):
        _check(text.encode())


@settings(deadline=None)
@given(st.lists(st.sampled_from(['"', "{", "}", "[", "]", ":", ",", " ", "\\", "messages", "role", "\\u0022", "é"])))
@example(['"'])
def test_both_ways_agree_on_damaged_text(pieces: list[str]) -> None:
    whole = b'{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}'
    _check(whole[: len(pieces) * 7] + "".join(pieces).encode() + whole[len(pieces) * 7 :])


ANSWERED = '{"role":"user","content":"q"},{"role":"assistant","content":"a"}'


@pytest.mark.parametrize(
    "text",
    [
        f'{{"messages":[{ANSWERED}],"messages":[{ANSWERED}]}}',
        '{"messages":[{"role":"user","content":"q","content":"\\u0022\\u0022\\u0022\\u0022"},{"role":"assistant","content":"a"}]}',
        f'{{"id":1,"id":2,"messages":[{ANSWERED}]}}',
        f'{{"id":123456789012345678901,"messages":[{ANSWERED}]}}',
        f'{{"messages":[{ANSWERED}],"x":{{"a":1,"a":"\\u0022\\u0022"}}}}',
        '{"messages":[{"role":"user","content":"e\u0301"},{"role":"assistant","content":"a"}]}',
        '{"messages":[{"role":"user","content":"\\u0065\\u0301"},{"role":"assistant","content":"a"}]}',
        '{"messages":[{"role":"user","content":"\\ud800"},{"role":"assistant","content":"a"}]}',
        '{"messages":[{"role":"user","content":"a\\r\\nb"},{"role":"assistant","content":"a"}]}',
        '{"messages":[{"role":"assistant","content":"\u00a0"}]}',
        f'{{"messages":[{ANSWERED}],"chosen":"a","rejected":"b"}}',
        f'{{"messages":[{ANSWERED}]}} {{}}',
        '["messages"]',
        '{"messages":{"role":"x"}}',
        '{"messages":"text"}',
    ],
)  # fmt: skip
def test_what_is_not_plain_is_left_to_the_careful_way(text: str) -> None:
    assert not _check(text.encode())


def test_the_usual_record_is_plain() -> None:
    assert _check(f'{{"messages": [{ANSWERED}]}}\n'.encode())
    assert _check(f'{{"messages":[{ANSWERED}]}}\n'.encode())
    assert _check(f'{{"id": "x", "domain": "law", "source": "s", "score": 0.5, "messages": [{ANSWERED}]}}'.encode())
    assert _check(
        '{"messages":[{"content":"“é” 日本\\n\\"","role":"user"},{"role":"assistant","content":"a"}]}'.encode()
    )
