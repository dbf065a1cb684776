import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.downloads import (
    ByteRange,
    UnsatisfiableRangeError,
    byte_range,
    none_match,
    some_match,
    strong_etag,
    weak_etag,
)

ETAG = '"abc"'


@pytest.mark.parametrize(
    ("header", "etag", "held"),
    [
        (None, ETAG, False),
        (ETAG, ETAG, True),
        ("*", ETAG, True),
        ('"x", "abc"', ETAG, True),
        ('W/"abc"', ETAG, True),
        (ETAG, 'W/"abc"', True),
        ('"ab"', ETAG, False),
        ("abc", ETAG, False),
        ("", ETAG, False),
    ],
)
def test_if_none_match(header: str | None, etag: str, held: bool) -> None:
    assert none_match(header, etag) is held


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", ByteRange(0, 1)),
        ("bytes=2-5", ByteRange(2, 6)),
        ("bytes=2-", ByteRange(2, 10)),
        ("bytes=-3", ByteRange(7, 10)),
        ("bytes=-30", ByteRange(0, 10)),
        ("bytes=9-99", ByteRange(9, 10)),
        ("bytes=5-2", None),
        ("bytes=-", None),
        ("bytes=0-1,4-5", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
        (None, None),
    ],
)
def test_one_range_of_ten_bytes(header: str | None, expected: ByteRange | None) -> None:
    assert byte_range(header, None, ETAG, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=10-12", "bytes=-0"])
def test_a_range_outside_is_unsatisfiable(header: str) -> None:
    with pytest.raises(UnsatisfiableRangeError, match="of 10"):
        byte_range(header, None, ETAG, 10)


@pytest.mark.parametrize(("if_range", "honoured"), [(ETAG, True), ('"old"', False), ('W/"abc"', False)])
def test_a_range_counts_only_for_the_version_it_is_of(if_range: str, honoured: bool) -> None:
    assert (byte_range("bytes=0-1", if_range, ETAG, 10) is not None) is honoured


@given(st.text(max_size=30), st.integers(0, 1000))
def test_any_header_gives_a_range_inside_the_file_or_none(text: str, n_bytes: int) -> None:
    try:
        found = byte_range(f"bytes={text}", None, ETAG, n_bytes)
    except UnsatisfiableRangeError:
        return
    assert found is None or 0 <= found.start < found.stop <= n_bytes


def test_tags() -> None:
    assert (strong_etag("x"), weak_etag("x")) == ('"x"', 'W/"x"')


@pytest.mark.parametrize(
    ("header", "etag", "fits"),
    [
        (ETAG, ETAG, True),
        ("*", ETAG, True),
        ('"x", "abc"', ETAG, True),
        ('W/"abc"', ETAG, False),
        ('"x", W/"abc"', ETAG, False),
        (ETAG, 'W/"abc"', False),
        ('W/"abc"', 'W/"abc"', False),
        ('"ab"', ETAG, False),
        ("", ETAG, False),
    ],
)
def test_if_match_compares_strongly(header: str, etag: str, fits: bool) -> None:
    assert some_match(header, etag) is fits
