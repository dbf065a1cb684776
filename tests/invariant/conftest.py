import os
from collections.abc import Iterator
from pathlib import Path

import pytest

# One thread: the models are tiny, and tests run side by side.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.models import tiny_model_folder

    return tiny_model_folder(tmp_path_factory.mktemp("llama"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
