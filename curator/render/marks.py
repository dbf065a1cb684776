"""Characters that only this package writes, and what is built of them: control tokens, escapes, ends of contents."""

import re
from dataclasses import dataclass, field

# Noncharacters U+FDD0..U+FDEF: valid in UTF-8, never assigned, untouched by normalisation forms.
SENTINEL, ESCAPE, _OPEN, _CLOSE, ROW = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3", "\ufdd4"
_FIRST_DIGIT = 0xFDE0
DIGIT = "[\ufde0-\ufdef]"
N_DIGITS = 4  # base 16: up to 65,536 control tokens or messages
RESERVED = re.compile("[\ufdd0-\ufdef]")
# Alternatives that each begin with a literal: the regex engine then skips quickly to where one can begin.
MARK = re.compile("|".join(f"{kind}.{{{N_DIGITS}}}" for kind in (_OPEN, _CLOSE)), re.DOTALL)
_EMPTY = re.compile(f"{_OPEN}(.{{{N_DIGITS}}}){_CLOSE}\\1", re.DOTALL)


@dataclass
class Assembled:
    """Text ready to encode, with the places (in characters) of the marks that were in it."""

    text: str
    n_controls: int  # control tokens that the template wrote, the unknown token left out
    opens: dict[int, list[int]] = field(default_factory=dict)
    closes: dict[int, list[int]] = field(default_factory=dict)


def encode_number(number: int) -> str:
    """The digits that stand for a number below 65,536."""
    return "".join(chr(_FIRST_DIGIT + (number >> shift & 15)) for shift in (12, 8, 4, 0))


def decode_number(digits: str) -> int:
    """The number that `encode_number` wrote."""
    number = 0
    for digit in digits:
        number = number * 16 + ord(digit) - _FIRST_DIGIT
    return number


def open_mark(index: int) -> str:
    """Placed where the content of message `index` begins."""
    return _OPEN + encode_number(index)


def close_mark(index: int) -> str:
    """Placed where the content of message `index` ends."""
    return _CLOSE + encode_number(index)


def is_open(mark: str) -> bool:
    """Whether a mark that `MARK` matched begins a content."""
    return mark[0] == _OPEN


def strip_marks(text: str) -> str:
    """The text without open and close marks."""
    return MARK.sub("", text)


def split_empty(text: str) -> tuple[list[str], list[int]]:
    """The texts around contents that are empty, one more than there are contents, and the contents' indices."""
    pieces = _EMPTY.split(text)
    return pieces[::2], [decode_number(digits) for digits in pieces[1::2]]
