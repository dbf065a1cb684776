"""What a request's own layers tell the one that logs it: who asks, and how many rows came.

The notes follow the request into the threads that work for it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_NOTES: ContextVar[dict[str, Any] | None] = ContextVar("notes", default=None)


def note(**facts: Any) -> None:
    """Add facts to the notes of the request that is being answered; outside of one nothing happens."""
    notes = _NOTES.get()
    if notes is not None:
        notes.update(facts)


@contextmanager
def taking_notes() -> Iterator[dict[str, Any]]:
    """The notes of one request, for the length of the block."""
    notes: dict[str, Any] = {}
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)
