import json
import os
from pathlib import Path

import pytest

# One thread: the models are tiny, and tests run side by side.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Runs are compared bit for bit. Without this the last bit of MKL's products follows where their memory lies, and on
# some processors a run with a monitor differs from one without.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.models import tiny_model_folder

    return tiny_model_folder(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat file of twelve conversations."""
    from tests.models import random_conversations

    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": m}) + "\n" for m in random_conversations(12)))
    return path
