"""Renderers that a process keeps."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from curator.errors import IntegrityError, MissingError
from curator.render import Renderer, RendererCache
from curator.store.store import Store
from tests.models import CHATML, tiny_tokenizer_folder


def saved(store: Store, folder: Path, *templates: str) -> list[str]:
    """Ids of renderers of one tokenizer under these templates."""
    path = tiny_tokenizer_folder(folder)
    return [Renderer.from_folder(path, template).save(store) for template in templates]


def test_a_renderer_is_made_once_whoever_asks(tmp_path: Path) -> None:
    store, cache = Store(tmp_path / "store").open(), RendererCache()
    (renderer_id,) = saved(store, tmp_path / "model", CHATML)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: cache.get(store, renderer_id), range(16)))
    assert len({id(renderer) for renderer in found}) == 1
    assert found[0].renderer_id == renderer_id


def test_the_renderers_used_last_stay(tmp_path: Path) -> None:
    store, cache = Store(tmp_path / "store").open(), RendererCache(kept=2)
    one, two, three = saved(store, tmp_path / "model", CHATML, CHATML + "!", CHATML + "?")
    first, second = cache.get(store, one), cache.get(store, two)
    assert cache.get(store, one) is first
    cache.get(store, three)  # in the place of the second
    assert cache.get(store, one) is first
    assert cache.get(store, two) is not second


def test_files_that_changed_or_went_are_noticed(tmp_path: Path) -> None:
    store, cache = Store(tmp_path / "store").open(), RendererCache()
    (renderer_id,) = saved(store, tmp_path / "model", CHATML)
    cache.get(store, renderer_id)
    template = f"renderers/{renderer_id}/chat_template.jinja"
    store.write_bytes(template, (CHATML + "!").encode())
    with pytest.raises(IntegrityError, match="its files now hash to"):
        cache.get(store, renderer_id)
    store.write_bytes(template, CHATML.encode())
    assert cache.get(store, renderer_id).renderer_id == renderer_id
    store.delete(f"renderers/{renderer_id}")
    with pytest.raises(MissingError, match=r"renderer\.json"):
        cache.get(store, renderer_id)
