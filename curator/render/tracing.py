"""A stand-in for a message's content that a template can place but not read.

What a template writes depends on the contents only through what it asks of them. A stand-in lets itself be added to
other text and written; it answers the few questions below as for most contents, and notes each as a condition that a
real content must meet; every other use raises. A template that ran through has then treated each content that meets
the conditions as text to be copied, whatever the text says.
"""

from collections.abc import Callable
from typing import Any, NoReturn, Self

from curator.render.marks import close_mark, open_mark


class InspectedError(Exception):
    """The template read a content, so that its output cannot be foreseen. Never leaves this package."""


Condition = tuple[int, Callable[[str], bool]]  # message index, and what its content must meet


class Conditions(list[Condition]):
    """What the contents must meet, and whether any was read in a way that no condition covers."""

    broken = False

    def inspected(self) -> NoReturn:
        """Refuse a use; the flag stays even where a template's construct swallows the exception."""
        self.broken = True
        raise InspectedError


class Content:
    """The content of message `index`, or text put together with it."""

    def __init__(self, conditions: Conditions, *parts: str | int) -> None:
        self._conditions = conditions
        self._parts = parts

    def __add__(self, other: object) -> "Content":
        return Content(self._conditions, *self._parts, *self._parts_of(other))

    def __radd__(self, other: object) -> "Content":
        return Content(self._conditions, *self._parts_of(other), *self._parts)

    def _parts_of(self, other: object) -> tuple[str | int, ...]:
        if isinstance(other, Content):
            return other._parts
        return (other,) if isinstance(other, str) else self._conditions.inspected()

    def _when(self, condition: Callable[[str], bool]) -> None:
        if len(self._parts) != 1 or not isinstance(self._parts[0], int):
            self._conditions.inspected()
        self._conditions.append((self._parts[0], condition))

    def __bool__(self) -> bool:
        self._when(bool)
        return True

    def __contains__(self, text: object) -> bool:
        wanted = self._text(text)
        self._when(lambda content: wanted not in content)
        return False

    def startswith(self, text: object) -> bool:
        """False, on condition."""
        wanted = self._text(text)
        self._when(lambda content: not content.startswith(wanted))
        return False

    def endswith(self, text: object) -> bool:
        """False, on condition."""
        wanted = self._text(text)
        self._when(lambda content: not content.endswith(wanted))
        return False

    def strip(self, characters: str | None = None) -> Self:
        """The same, on condition that there is nothing to strip."""
        self._when(lambda content: content == content.strip(characters))
        return self

    def lstrip(self, characters: str | None = None) -> Self:
        """The same, on condition."""
        self._when(lambda content: content == content.lstrip(characters))
        return self

    def rstrip(self, characters: str | None = None) -> Self:
        """The same, on condition."""
        self._when(lambda content: content == content.rstrip(characters))
        return self

    def _text(self, text: object) -> str:
        # The empty text is in every content.
        return text if isinstance(text, str) and text else self._conditions.inspected()

    def __getattr__(self, name: str) -> NoReturn:
        self._conditions.inspected()

    def _inspected(self, *_arguments: object) -> Any:
        self._conditions.inspected()

    __str__ = __repr__ = __format__ = __bytes__ = _inspected
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _inspected
    __hash__ = _inspected
    __len__ = __iter__ = __reversed__ = __getitem__ = _inspected
    __int__ = __float__ = __complex__ = __index__ = _inspected
    __mul__ = __rmul__ = __mod__ = __rmod__ = _inspected


def written(value: Any) -> Any:
    """What a template writes: a pair of marks for each content, and whatever is not a stand-in as it is."""
    if not isinstance(value, Content):
        return value
    parts = value._parts
    return "".join(open_mark(part) + close_mark(part) if isinstance(part, int) else part for part in parts)
