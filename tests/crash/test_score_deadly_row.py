"""A row that kills the whole process, as a segmentation fault would: marked after a few restarts, the rest scored."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from curator.corpus.ingest import ingest
from curator.scoring.faults import FOLDER, MAX_DEATHS
from curator.store.store import Store
from tests.models import random_conversations, tiny_tokenizer_folder

ROOT = Path(__file__).parents[2]
PROGRAM = """
import json, os, signal, sys
from pathlib import Path
from curator.render import Renderer
from curator.scoring import RowLoss, ScoreRequest, score_corpus
from curator.store.store import Store

renderer = Renderer.from_folder(Path(sys.argv[2]))
ROW = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "deadly"}]
DEADLY = renderer.render(ROW).input_ids.tolist()

class Engine:
    name, version, dtype = "torch", "test", "float32"
    def score(self, rows, on_rows=None):
        for row in rows:
            if row.input_ids.tolist() == DEADLY:
                os.kill(os.getpid(), signal.SIGKILL)
        return [RowLoss(float(row.input_ids.sum()), int(row.response_mask[1:].sum())) for row in rows]
    def use_adapter(self, path): pass
    def close(self): pass

request = ScoreRequest("chats", Path(sys.argv[2]), "aligned", engine_version="test", block_tokens=400)
print(json.dumps(score_corpus(Store(sys.argv[1]).open(), request, renderer, Engine).document()))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tiny_tokenizer_folder(tmp_path / "model")
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    return folder


def test_the_process_dies_three_times_and_then_the_row_is_marked(tmp_path: Path, model: Path) -> None:
    store = Store(tmp_path / "store").open()
    deadly = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "deadly"}]
    conversations = random_conversations(20, seed=5)
    file = tmp_path / "chats.jsonl"
    texts = [json.dumps({"messages": messages}) for messages in [*conversations[:9], deadly, *conversations[9:]]]
    file.write_text("\n".join(texts) + "\n")
    ingest(store, [file], "chats")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "BALLAST_PROGRESS": "0"}
    codes = []
    for _ in range(MAX_DEATHS + 2):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "store"), str(model)],
            env=environment, capture_output=True, timeout=60, check=False,
        )  # fmt: skip
        codes.append(done.returncode)
    assert codes == [-signal.SIGKILL] * (MAX_DEATHS + 1) + [0], done.stderr.decode()
    report = json.loads(done.stdout)
    assert report["status_counts"] == {"scored": 20, "failed": 1}
    assert "the process died 2 times while it scored this row alone" in report["warnings"][0]
    assert store.list(f"scores/chats/{report['scorer_id']}/{FOLDER}") == []
