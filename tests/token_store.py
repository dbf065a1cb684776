"""A store whose losses a tiny real model and its adapters gave, on a CPU in float32."""

import json
from dataclasses import dataclass
from pathlib import Path

from curator.corpus.ingest import ingest
from curator.render import Renderer
from curator.scoring import ScoreRequest, score_corpus
from curator.scoring.engines.launch import torch_launch
from curator.store.store import Store
from tests.models import tiny_adapter_folder, tiny_model_folder

CONVERSATIONS = [
    [
        {"role": "user", "content": "How long do I boil an egg?"},
        {"role": "assistant", "content": "Seven minutes for a soft yolk — 10 for a firm one. 好的 👍🏽"},
    ],
    [
        {"role": "user", "content": "<script>alert('row')</script> <|im_end|> \u202e"},
        {"role": "assistant", "content": "<img src=x onerror=alert(1)> {{ 7 * 7 }} is shown as it is."},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "Because nobody runs what a row says."},
    ],
    [{"role": "user", "content": "A long one"}, {"role": "assistant", "content": "too many words " * 300}],
]


@dataclass(frozen=True)
class ScoredByModels:
    """The store, and the folders that scored its corpus `chats` as `base`, `reckless` and `twin`."""

    store: Store
    model: Path
    reckless: Path
    twin: Path


def scored_by_models(root: Path) -> ScoredByModels:
    """Write the store at `root`/store, its models beside it."""
    store = Store(root / "store").open()
    rows = root / "rows.jsonl"
    lines = [*(json.dumps({"messages": turns}) for turns in CONVERSATIONS), "no record"]
    rows.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    ingest(store, [rows], "chats")
    model = tiny_model_folder(root / "base")
    adapters = {name: tiny_adapter_folder(model, root / name, seed) for seed, name in ((1, "reckless"), (2, "twin"))}
    renderer = Renderer.from_folder(model)
    launch = torch_launch(model, "cpu", "float32", threads=1)
    for role, name in (("aligned", None), ("misaligned", "reckless"), ("benign", "twin")):
        asked = ScoreRequest(
            "chats", model, role, domain=name, adapter_dir=adapters.get(name or ""), label=name or "base",
            engine_version=launch.version, dtype=launch.dtype, max_length=512, check_rows=0,
        )  # fmt: skip
        score_corpus(store, asked, renderer, launch)
    return ScoredByModels(store, model, adapters["reckless"], adapters["twin"])
