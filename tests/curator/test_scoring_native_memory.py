"""Native libraries are held to a bound, and what the environment says comes first."""

import os

import pytest

from curator.scoring import native_memory


@pytest.mark.parametrize(
    ("variable", "most"), [("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "256"), ("LRU_CACHE_CAPACITY", "128")]
)
def test_a_bound_is_set_unless_the_environment_has_one(
    monkeypatch: pytest.MonkeyPatch, variable: str, most: str
) -> None:
    monkeypatch.delenv(variable, raising=False)
    native_memory.bound_kernels()
    assert os.environ[variable] == most
    monkeypatch.setenv(variable, "7")
    native_memory.bound_kernels()
    assert os.environ[variable] == "7"


def test_freed_pages_go_back_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    monkeypatch.setattr(native_memory, "_trim", lambda: called.append)
    native_memory.give_back()
    assert called == [0]
    monkeypatch.setattr(native_memory, "_trim", lambda: None)
    native_memory.give_back()  # another C library: nothing happens


def test_the_c_library_at_hand_is_asked_without_harm() -> None:
    native_memory.give_back()
    assert native_memory._trim() is None or callable(native_memory._trim())
