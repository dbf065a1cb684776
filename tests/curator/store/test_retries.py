"""Repeated attempts: how many, after which pauses, and which error is raised in the end."""

from collections.abc import Callable

import pytest

from curator.errors import RemoteError
from curator.store.retries import Retries, TryAgainError, retry_after_s


def failing(n: int, wait_s: float | None = None) -> Callable[[], str]:
    """An attempt that fails `n` times."""
    left = iter(range(n))

    def attempt() -> str:
        for number in left:
            raise TryAgainError(RemoteError(f"failure {number}"), wait_s)
        return "done"

    return attempt


def test_pauses_double_up_to_the_longest() -> None:
    waits: list[float] = []
    assert Retries(6, 0.5, 3.0, sleep=waits.append).run(failing(5)) == "done"
    assert waits == [0.5, 1.0, 2.0, 3.0, 3.0]


def test_the_server_may_name_the_pause() -> None:
    waits: list[float] = []
    Retries(3, 0.5, 8.0, sleep=waits.append).run(failing(1, wait_s=4.0))
    Retries(3, 0.5, 8.0, sleep=waits.append).run(failing(1, wait_s=3600.0))
    assert waits == [4.0, 8.0]


def test_the_last_error_is_raised_without_another_pause() -> None:
    waits: list[float] = []
    with pytest.raises(RemoteError, match="failure 2"):
        Retries(3, 1.0, 8.0, sleep=waits.append).run(failing(3))
    assert waits == [1.0, 2.0]


def test_other_errors_are_not_tried_again() -> None:
    waits: list[float] = []

    def refused() -> str:
        raise RemoteError("refused")

    with pytest.raises(RemoteError, match="refused"):
        Retries(3, 1.0, 8.0, sleep=waits.append).run(refused)
    assert waits == []


def test_jitter_keeps_pauses_within_half_and_one_and_a_half() -> None:
    waits: list[float] = []
    for _ in range(50):
        Retries(2, 1.0, 8.0, jitter=True, sleep=waits.append).run(failing(1))
    assert all(0.5 <= wait < 1.5 for wait in waits)
    assert len(set(waits)) > 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [(None, None), ("3", 3.0), ("0.5", 0.5), ("-1", 0.0), ("Wed, 21 Oct 2026 07:28:00 GMT", None)],
)
def test_the_retry_after_header(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header) == seconds
