"""Rows as text stay on one line each and carry no escapes or markup of the corpus."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator.console import (
    Progress,
    cell,
    escape_markdown,
    markdown_table,
    one_line,
    progress_line,
    text_table,
    unescape_markdown,
)


@given(st.text(), st.integers(1, 80))
def test_one_line_is_short_and_printable(text: str, width: int) -> None:
    line = one_line(text, width)
    assert len(line) <= width
    assert len(line.splitlines()) <= 1
    assert all(char.isprintable() for char in line)


def test_terminal_escapes_and_text_direction_marks_are_shown_as_question_marks() -> None:
    assert one_line("a\x1b[31mred\u202e b\nc\u200b") == "a?[31mred? b c?"


def test_cells() -> None:
    values = [None, True, 3, 0.1234567, [1, 2], "0123456789abcdef0123456789abcdef", "plain"]
    assert [cell(value) for value in values] == [
        "null", "true", "3", "0.123457", "[2 items]", "01234567…", "plain",
    ]  # fmt: skip


def test_text_table_is_aligned_with_long_names_broken_at_underscores() -> None:
    rows = [{"name": "a", "n_response_tokens": 5}, {"name": "bcd", "n_response_tokens": 1200}]
    assert text_table(["name", "n_response_tokens"], rows) == (
        "      n_response_\nname       tokens\n----  -----------\na               5\nbcd          1200"
    )


def test_text_table_shrinks_text_to_the_width() -> None:
    rows = [{"rank": 1, "head": "word " * 12}]
    lines = text_table(["rank", "head"], rows, width=40).splitlines()
    assert max(map(len, lines)) == 40
    assert lines[-1].endswith("…")


def test_a_table_without_rows_shows_its_columns() -> None:
    assert text_table(["a", "b"], []).splitlines()[0] == "a  b"


def test_markdown_cannot_be_broken_out_of() -> None:
    hostile = "a | b <script>\n# head [x](y) `c` *d*"
    table = markdown_table(["head"], [{"head": hostile}])
    assert len(table.splitlines()) == 3
    assert "<" not in table
    assert r"\|" in table.splitlines()[2]
    assert escape_markdown("*_`") == r"\*\_\`"
    for text in (hostile, r"\ \\ \* &lt; \&amp; a_b~c!$", "".join(map(chr, range(32, 127)))):
        assert unescape_markdown(escape_markdown(text)) == text


@pytest.mark.parametrize("first", [1, 500])
def test_time_left_does_not_count_what_came_before_the_first_row(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ninety seconds of loading, or what an earlier run had done, then ten rows a second."""
    clock = [0.0]
    monkeypatch.setenv("BALLAST_PROGRESS", "0")
    monkeypatch.setattr("curator.console.time.monotonic", lambda: clock[0])
    with Progress(1_000, "rows", "scoring") as progress:
        clock[0] = 90.0
        progress.advance(first)
        for _ in range(20):
            clock[0] += 0.1
            progress.advance()
        left = 1_000 - first - 20
        assert progress_line(progress).endswith(f", 10 rows/s, {left / 10:.0f} s left")


def test_time_left_after_one_step_is_that_of_this_step(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setenv("BALLAST_PROGRESS", "0")
    monkeypatch.setattr("curator.console.time.monotonic", lambda: clock[0])
    with Progress(10, "cells", "training") as progress:
        clock[0] = 60.0
        progress.advance()
        assert progress_line(progress).endswith("540 s left")
