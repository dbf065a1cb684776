"""Renderers that a process keeps, by id.

A renderer never changes and is safe to share by threads, while making one out of its files costs as much as counting
hundreds of rows. What is kept is used only while the store holds the files that it was made from.
"""

from collections import OrderedDict
from dataclasses import dataclass
from threading import Lock

from curator.render.renderer import Renderer, renderer_state
from curator.store.store import Store

KEPT = 4  # each up to about 100 MiB: a tokenizer, and units of text that were met


@dataclass(frozen=True)
class _Kept:
    renderer: Renderer
    state: tuple[bytes, ...]


class RendererCache:
    """The renderers used last, at most `kept`; for any number of threads."""

    def __init__(self, kept: int = KEPT) -> None:
        self._n_kept = kept
        self._lock = Lock()
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()

    def get(self, store: Store, renderer_id: str) -> Renderer:
        """The renderer that `Renderer.from_store` gives, made at most once; raises what it raises."""
        key, state = (store.base, renderer_id), renderer_state(store, renderer_id)
        with self._lock:
            found = self._kept.pop(key, None)
            if found is None or found.state != state:
                found = _Kept(Renderer.from_store(store, renderer_id), state)
            self._kept[key] = found
            while len(self._kept) > self._n_kept:
                self._kept.popitem(last=False)
        return found.renderer


RENDERERS = RendererCache()  # of this process
