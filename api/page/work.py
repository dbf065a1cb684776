"""What the page has done in a process of its own, with bounds of time and memory: reading texts that may be long."""

from functools import cache
from pathlib import Path
from typing import Any

from curator.audit.doctor import DoctorOptions, examine, shown_masks
from curator.corpus.manifest import read_corpus, read_scorers
from curator.errors import BallastError
from curator.messages import Message
from curator.render import MaskRule, Renderer
from curator.render.cache import RENDERERS
from curator.store.store import Store

MAX_SHOWN_ROWS = 3
MAX_LISTED = 100  # bad rows of a check


def render_pieces(root: str, renderer_id: str, messages: list[Message], rule: MaskRule) -> dict[str, Any]:
    """A conversation as text cut where response tokens begin and end, and its counts of tokens."""
    renderer = RENDERERS.get(_store(root), renderer_id)
    rendered = renderer.render(messages, rule)
    counts = {"n_tokens": rendered.n_tokens, "n_trained": rendered.n_response_tokens}
    return {"pieces": renderer.pieces(rendered), **counts}


def check_file(root: str, path: Path, options: dict[str, Any], corpus: str | None) -> dict[str, Any]:
    """What `ballast doctor` finds in a file, and the first rows as the corpus's aligned model reads them."""
    renderer, rule = _renderer(_store(root), corpus)
    asked = DoctorOptions(renderer=renderer, mask_rule=rule, **options)
    found = examine(path, asked).as_dict()
    rows = [] if renderer is None else list(shown_masks(path, asked, MAX_SHOWN_ROWS))
    return {**found, "rejects": found["rejects"][:MAX_LISTED], "shown_rows": rows}


def _renderer(store: Store, corpus: str | None) -> tuple[Renderer | None, MaskRule]:
    """The renderer of a corpus's aligned scorer, where it has one that can be read."""
    if corpus is None:
        return None, "all"
    try:
        scorers = read_scorers(store, read_corpus(store, corpus))
        aligned = next(item for item in scorers if item.role == "aligned" and item.complete)
        return RENDERERS.get(store, aligned.renderer_id), aligned.identity.get("mask_rule", "all")
    except (StopIteration, BallastError):
        return None, "all"


@cache
def _store(root: str) -> Store:
    return Store(root)
