"""What tests of the OpenAI form share: a scored store, and a client of the service that a module starts as `url`."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.api.serving import scored_store


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("openai")
    scored_store(path)
    return path


@pytest.fixture
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=60) as client:
        yield client
