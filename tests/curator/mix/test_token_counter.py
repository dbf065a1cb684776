"""Tokens of a mix, counted a batch of rows at a time."""

import functools
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curator.errors import RenderError
from curator.messages import dump_messages, load_messages
from curator.mix import count_beside, token_counter
from curator.mix.manifest import TokenCount
from curator.mix.token_counter import TokenCounter
from curator.render import MaskRule, Renderer, RenderSettings
from curator.store.store import Store
from tests.models import CHATML, tiny_tokenizer_folder

# Leaves out a system turn and refuses a tool's.
TEMPLATE = CHATML.replace(
    "{{ '<|im_start|>' + message['role']",
    "{% if message['role'] == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "{% if message['role'] == 'system' %}{% continue %}{% endif %}"
    "{{ '<|im_start|>' + message['role']",
)
TEXTS = st.one_of(
    st.sampled_from(
        ["", " ", "the fox", "a\nb", "<|im_end|>", "東京 は", "e\u0301", "\ufdd0", "x" * 60, "don't, 2024!"]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
ROLES = st.sampled_from(["ua", "sua", "uaua", "uat", "a", "u", "suaua"])
NAMES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}


@st.composite
def rows(draw: st.DrawFn) -> tuple[str, str]:
    """Origin and canonical JSON text."""
    messages: list[dict[str, Any]] = [{"role": NAMES[role], "content": draw(TEXTS)} for role in draw(ROLES)]
    if draw(st.booleans()):
        messages[-1]["weight"] = draw(st.sampled_from([0, 1]))
    return draw(st.sampled_from(["task", "safe"])), dump_messages(messages)


@functools.cache
def renderer() -> Renderer:
    with tempfile.TemporaryDirectory() as folder:
        path = tiny_tokenizer_folder(Path(folder) / "model", TEMPLATE)
        return Renderer.from_folder(path, settings=RenderSettings.parse(accept_dropped=["content"]))


def one_by_one(items: list[tuple[str, str]], origin: str, mask_rule: MaskRule) -> dict[str, Any]:
    """The same counts from each row's own rendering."""
    total = response = failed = 0
    dropped: dict[str, int] = {}
    for text in (text for own, text in items if own == origin):
        try:
            rendered = renderer().render(load_messages(text), mask_rule)
        except RenderError:
            failed += 1
            continue
        total, response = total + rendered.n_tokens, response + int(rendered.loss_mask.sum())
        for part in rendered.dropped:
            dropped[part] = dropped.get(part, 0) + 1
    return TokenCount(total=total, response=response, n_rows_not_rendered=failed, dropped=dropped).model_dump()


@settings(deadline=None, max_examples=60)
@given(st.lists(rows(), max_size=25), st.sampled_from(["all", "last"]), st.integers(1, 30), st.integers(1, 400))
def test_counts_of_batches_are_those_of_rows(
    items: list[tuple[str, str]], mask_rule: MaskRule, batch_rows: int, batch_chars: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_counter, "BATCH_ROWS", batch_rows)
        patch.setattr(token_counter, "BATCH_CHARS", batch_chars)
        counter = TokenCounter(renderer(), mask_rule)
        counter.add([origin for origin, _ in items], [text for _, text in items])
    for origin in ("task", "safe"):
        assert counter.count(origin).model_dump() == one_by_one(items, origin, mask_rule)


def many_rows(n_rows: int) -> tuple[list[str], list[str]]:
    messages = [
        [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": "the fox"}] for n in range(n_rows)
    ]
    return ["task" if n % 5 else "safe" for n in range(n_rows)], [dump_messages(row) for row in messages]


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_process_counts_a_part_and_sums_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: bool
) -> None:
    monkeypatch.setattr(count_beside, "LEAST_BYTES", 1)
    monkeypatch.setattr(count_beside, "BATCH_ROWS", 64)  # so that it may take a piece, or the rest of one
    monkeypatch.setattr(pa, "cpu_count", lambda: 2)
    store, piece = Store(tmp_path).open(), many_rows(200)
    renderer_id = renderer().save(store)
    counter, alone = TokenCounter(renderer(), "all"), TokenCounter(renderer(), "all")
    others = set(psutil.Process().children())
    with count_beside.counting_beside(counter, store, renderer_id, 1) as add:
        (process,) = set(psutil.Process().children()) - others
        while n_tokens(counter) == n_tokens(alone):
            add(*piece)  # until one of them went to the other process and is not counted yet
            alone.add(*piece)
        if killed:
            process.kill()
        add(*piece)
        alone.add(*piece)
    assert not process.is_running()
    assert [counter.count(origin) for origin in ("task", "safe")] == [
        alone.count(origin) for origin in ("task", "safe")
    ]


def test_a_second_process_that_ends_at_once_is_done_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where memory is short; it may have ended before it is told what to count."""
    monkeypatch.setattr(count_beside, "LEAST_BYTES", 1)
    monkeypatch.setattr(pa, "cpu_count", lambda: 2)

    def ended(_descriptor: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(["false"])
        process.wait()
        return process

    monkeypatch.setattr(count_beside, "_start", ended)
    store, piece = Store(tmp_path).open(), many_rows(20)
    counter, alone = TokenCounter(renderer(), "all"), TokenCounter(renderer(), "all")
    with count_beside.counting_beside(counter, store, renderer().save(store), 1) as add:
        add(*piece)
        add(*piece)
    alone.add(*piece)
    alone.add(*piece)
    assert n_tokens(counter) == n_tokens(alone)


def test_a_second_process_imports_nothing_from_the_folder_that_it_is_run_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(count_beside, "LEAST_BYTES", 1)
    monkeypatch.setattr(pa, "cpu_count", lambda: 2)
    store, piece = Store(tmp_path / "store").open(), many_rows(20)
    renderer_id, folder = renderer().save(store), tmp_path / "a stranger's"
    folder.mkdir()
    (folder / "curator.py").write_text("import pathlib; pathlib.Path('run').touch()\n")
    monkeypatch.chdir(folder)
    counter, alone = TokenCounter(renderer(), "all"), TokenCounter(renderer(), "all")
    with count_beside.counting_beside(counter, store, renderer_id, 1) as add:
        while n_tokens(counter) == n_tokens(alone):
            assert not (folder / "run").exists()
            add(*piece)  # until some went to the other process
            alone.add(*piece)
    assert n_tokens(counter) == n_tokens(alone)


def n_tokens(counter: TokenCounter) -> int:
    return sum(counter.count(origin).total for origin in ("task", "safe"))
