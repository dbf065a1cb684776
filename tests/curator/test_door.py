"""The names that `curator` offers are there, and loading the package loads none of its heavy parts."""

import subprocess
import sys

import pytest

import curator


@pytest.mark.parametrize("name", curator.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert callable(getattr(curator, name))


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'curator' has no attribute 'nosuch'"):
        _ = curator.nosuch  # type: ignore[attr-defined]


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = (
        "import curator, sys; print([n for n in ('torch', 'duckdb', 'polars', 'pyarrow', 'httpx') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
