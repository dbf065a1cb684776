import pytest

from api.downloads import none_match, some_match, strong_etag, weak_etag

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
