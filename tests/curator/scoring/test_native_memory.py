"""Native libraries are held to a bound, and what the environment says comes first."""

import os
import platform
import subprocess
import sys

import pytest

from curator.scoring.engines import native_memory


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
    monkeypatch.setattr(native_memory, "_library_function", {"malloc_trim": called.append}.get)
    native_memory.give_back()
    assert called == [0]
    monkeypatch.setattr(native_memory, "_library_function", lambda name: None)
    native_memory.give_back()  # another C library: nothing happens


def test_pages_are_kept_unless_the_environment_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[int, int]] = []
    for name in native_memory._MALLOC_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(native_memory, "_library_function", {"mallopt": lambda *words: called.append(words)}.get)
    native_memory.keep_pages()
    assert called == [(-3, 2**30), (-1, 2**30)]
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    native_memory.keep_pages()
    assert len(called) == 2
    monkeypatch.setattr(native_memory, "_library_function", lambda name: None)
    native_memory.keep_pages()  # another C library: nothing happens


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt's bounds are the GNU C library's")
def test_pages_are_kept_for_the_next_step_and_a_bound_of_the_users_own_stays() -> None:
    """Memory that is taken and freed again and again: faults of a process that keeps it and of one that may not."""
    script = """
import resource
from curator.scoring.engines.native_memory import keep_pages
keep_pages()
size = 8 * 2**20  # by name, so that the compiler does not make one constant of it
for _ in range(50):
    b"x" * size
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
    plain = {name: value for name, value in os.environ.items() if name not in native_memory._MALLOC_VARIABLES}
    reported = plain | {"MALLOC_TRIM_THRESHOLD_": "131072", "MALLOC_MMAP_THRESHOLD_": "131072"}
    faults = [
        int(subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, check=True).stdout)
        for env in (plain, reported)
    ]
    assert faults[0] < faults[1] / 5


def test_the_c_library_at_hand_is_asked_without_harm() -> None:
    native_memory.give_back()
    for name in ("malloc_trim", "mallopt", "no_such_function"):
        found = native_memory._library_function(name)
        assert found is None or callable(found)
