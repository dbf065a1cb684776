"""Score instruct corpora by perplexity gap, choose safe rows, and mix them into fine-tuning data.

The packages are the stations of the data, in order: `corpus` reads chat files, `render` turns them into token ids,
`scoring` stores losses, `query` gives the gap in SQL, `select` chooses rows, `mix` writes the training mix, `audit`
compares a data set with a scored corpus; `store` keeps the bytes and `recipe` is the request. A package imports only
those before it (the contracts are in pyproject.toml). The names below are what a notebook needs; each is loaded when it
is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from curator.client import Client
    from curator.corpus.ingest import IngestOptions, ingest
    from curator.mix.build import build_mix
    from curator.mix.identity import read_manifest
    from curator.mix.notebook_mix import open_mix
    from curator.mix.verify import verify
    from curator.query.database import connect
    from curator.query.frames import gap
    from curator.recipe import Recipe
    from curator.scoring import score_corpus
    from curator.store.store import Store

_HOMES = {
    "Client": "client",
    "Recipe": "recipe",
    "Store": "store.store",
    "build_mix": "mix.build",
    "connect": "query.database",
    "gap": "query.frames",
    "IngestOptions": "corpus.ingest",
    "ingest": "corpus.ingest",
    "open_mix": "mix.notebook_mix",
    "read_manifest": "mix.identity",
    "score_corpus": "scoring",
    "verify": "mix.verify",
}
__all__ = [
    "Client",
    "IngestOptions",
    "Recipe",
    "Store",
    "build_mix",
    "connect",
    "gap",
    "ingest",
    "open_mix",
    "read_manifest",
    "score_corpus",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
