import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.errors import IntegrityError, MissingError, RemoteError
from curator.mix.build import build_mix
from curator.mix.identity import Manifest, read_manifest
from curator.render import Renderer
from curator.scoring.identity import weights_sha256
from curator.store.store import Store
from tests.gap_stores import write_corpus
from tests.mix_stores import recipe, scored_store, task_records, task_set
from trainer.config import parse_config
from trainer.data.inputs import mix_warnings, read_inputs
from trainer.data.mixes import (
    MANIFEST_COPY,
    ROWS_COPY,
    TrainRow,
    open_mix,
    with_whole_id,
)


@pytest.fixture
def built(llama: Path, tmp_path: Path) -> tuple[Path, str]:
    """A store with one mix of 20 task and 4 safe rows; its folder and the mix id."""
    store = scored_store(tmp_path / "store", llama)
    result = build_mix(store, task_set(tmp_path / "work", 20), recipe(interleave_ratio=0.2))
    return tmp_path / "store", result.mix_id


def read(out: Path, **source: Any) -> list[TrainRow]:
    out.mkdir(exist_ok=True)
    return list(open_mix(parse_config({"model": "m", "out": out, **source}), out).rows())


def rewrite(root: Path, mix_id: str, change: Any) -> None:
    path = root / "mixes" / "local" / mix_id / "mix.parquet"
    table = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema), path)


def test_rows_come_in_the_manifests_order(built: tuple[Path, str], tmp_path: Path) -> None:
    root, mix_id = built
    rows = read(tmp_path / "out", mix_id=mix_id, store=str(root))
    stored = pq.read_table(root / "mixes" / "local" / mix_id / "mix.parquet")
    assert [row.example_id for row in rows] == stored.column("example_id").to_pylist()
    assert [row.origin for row in rows] == stored.column("origin").to_pylist()
    assert [row.position for row in rows] == list(range(24))
    assert sum(row.origin == "safe" for row in rows) == 4
    assert orjson.loads((tmp_path / "out" / MANIFEST_COPY).read_bytes())["mix_id"] == mix_id


def swapped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows[3], rows[4] = rows[4] | {"position": 3}, rows[3] | {"position": 4}
    return rows


def edited(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows[5]["messages"] = rows[5]["messages"].replace("Task", "Tusk")
    return rows


CHANGES = {
    "swapped": (swapped, "read 24 rows with SHA-256"),
    "edited": (edited, "line 6 has position 5 and example id"),
    "cut": (lambda rows: rows[:-1], "read 23 rows"),
    "moved": (lambda rows: [rows[1], rows[0], *rows[2:]], "line 1 has position 1"),
    "relabelled": (lambda rows: [row | {"origin": "task"} for row in rows], "read 24 rows with SHA-256"),
}


@pytest.mark.parametrize("how", list(CHANGES))
def test_rows_that_are_not_the_manifests_are_refused(built: tuple[Path, str], tmp_path: Path, how: str) -> None:
    change, message = CHANGES[how]
    rewrite(*built, change)
    with pytest.raises(IntegrityError, match=message):
        read(tmp_path / "out", mix_id=built[1], store=str(built[0]))


def test_a_manifest_with_another_recipe_is_refused(built: tuple[Path, str], tmp_path: Path) -> None:
    path = built[0] / "mixes" / "local" / built[1] / "manifest.json"
    document = orjson.loads(path.read_bytes())
    document["recipe"]["seed"] = 99
    path.write_bytes(orjson.dumps(document))
    with pytest.raises(IntegrityError, match="hashes to"):
        read(tmp_path / "out", mix_id=built[1], store=str(built[0]))


def test_a_mix_that_is_not_there(built: tuple[Path, str], tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="there is no mix"):
        read(tmp_path / "out", mix_id="0" * 32, store=str(built[0]))
    with pytest.raises(MissingError, match="no store"):
        read(tmp_path / "out", mix_id=built[1], store=str(tmp_path / "nowhere"))


@pytest.fixture
def url(built: tuple[Path, str]) -> Iterator[str]:
    from api.settings import Settings
    from tests.api.serving import running

    with running(Settings(store=str(built[0]))) as address:
        yield address


def test_the_service_gives_the_same_rows(built: tuple[Path, str], url: str, tmp_path: Path) -> None:
    root, mix_id = built
    local = read(tmp_path / "local", mix_id=mix_id, store=str(root))
    assert read(tmp_path / "remote", mix_id=mix_id, api_url=url) == local
    manifest = read_manifest(Store(root), "local", mix_id)
    copy = (tmp_path / "remote" / ROWS_COPY).read_bytes()
    assert hashlib.sha256(copy).hexdigest() == manifest.rows_sha256
    assert (tmp_path / "remote" / MANIFEST_COPY).read_bytes() == (tmp_path / "local" / MANIFEST_COPY).read_bytes()


def test_a_service_finds_a_mix_by_the_beginning_of_its_id(built: tuple[Path, str], url: str, tmp_path: Path) -> None:
    given = {"model": "m", "out": tmp_path / "run", "api_url": url}
    assert with_whole_id(parse_config({**given, "mix_id": built[1][:5]})).mix_id == built[1]
    assert with_whole_id(parse_config({**given, "mix_id": "no"})).mix_id == "no"  # what reads it says what is wrong
    with pytest.raises(MissingError, match=r"no mix of the service's begins with '0000': GET /v1/mixes lists them"):
        with_whole_id(parse_config({**given, "mix_id": "0000"}))


def test_rows_fetched_are_verified_again_when_read(built: tuple[Path, str], url: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    mix = open_mix(parse_config({"model": "m", "out": out, "mix_id": built[1], "api_url": url}), out)
    assert not (out / ROWS_COPY).exists()  # fetched when first read
    assert len(list(mix.rows())) == mix.manifest.n_rows
    lines = (out / ROWS_COPY).read_bytes().splitlines(keepends=True)
    (out / ROWS_COPY).write_bytes(b"".join(lines[:-1]))
    with pytest.raises(IntegrityError, match="read 23 rows"):
        list(mix.rows())
    assert len(list(mix.rows())) == mix.manifest.n_rows  # the damaged copy is gone, so this fetched it again
    assert (out / ROWS_COPY).read_bytes().splitlines(keepends=True) == lines


def test_a_service_without_the_mix(url: str, tmp_path: Path) -> None:
    with pytest.raises(RemoteError, match="no such mix"):
        read(tmp_path / "out", mix_id="0" * 32, api_url=url)


def manifest_with(built: tuple[Path, str], **scorer: Any) -> Manifest:
    manifest = read_manifest(Store(built[0]), "local", built[1])
    pool = manifest.pools[0]
    refs = tuple(ref.model_copy(update=scorer if ref.role == "aligned" else {}) for ref in pool.scorers)
    return manifest.model_copy(update={"pools": (pool.model_copy(update={"scorers": refs}),)})


@pytest.mark.parametrize(("length", "warns"), [(12, True), (1, False)])
def test_training_says_that_safe_answers_weigh_little_where_no_scorer_could(
    llama: Path, tmp_path: Path, length: int, warns: bool
) -> None:
    store = Store(tmp_path / "store").open()
    write_corpus(store, "chats", [f"Answer number {i} is this." for i in range(40)])
    answer = "This answer of the task set is a long one. " * length
    tasks = [{"messages": [*row["messages"][:1], {"role": "assistant", "content": answer}]} for row in task_records(20)]
    asked = recipe(rows=4, strategy={"name": "random"})
    mix = build_mix(store, task_set(tmp_path / "work", records=tasks), asked)
    assert mix.manifest.tokens.safe is None
    config = parse_config(
        {"model": str(llama), "out": tmp_path / "run", "mix_id": mix.mix_id, "store": str(tmp_path / "store")}
    )
    (tmp_path / "run").mkdir()
    inputs = read_inputs(config, tmp_path / "run", weights_sha256(llama), None)
    n_safe = sum(int((row >= 0).sum()) for row, safe in zip(inputs.prepared.labels, inputs.prepared.safe, strict=True)
                 if safe)  # fmt: skip
    share = 100 * n_safe / inputs.prepared.report().n_response_tokens
    found = [item.text for item in inputs.warnings if item.code == "low_token_share"]
    said = f"Safe rows are 16.7 % of the rows but {share:.3g} % of the trained tokens"
    assert [text.startswith(said) for text in found] == [True] * warns


def test_warnings_name_what_differs_from_the_scorer(built: tuple[Path, str], llama: Path) -> None:
    weights, renderer_id = weights_sha256(llama), Renderer.from_folder(llama).renderer_id
    same = manifest_with(built, weights_sha256=weights)
    assert mix_warnings(same, weights, renderer_id, "all") == []
    other = manifest_with(built, weights_sha256="f" * 64)
    (warned,) = mix_warnings(other, weights, renderer_id, "all")
    assert warned.code == "other_model_than_scored"
    assert weights[:12] in warned.text
    assert "ffffffffffff" in warned.text
    codes = [item.code for item in mix_warnings(same, weights, "another", "last")]
    assert codes == ["other_renderer_than_scored", "other_mask_rule_than_scored"]
    adapted = manifest_with(built, weights_sha256=weights, adapter_sha256="a" * 64)
    assert [item.code for item in mix_warnings(adapted, weights, renderer_id, "all")] == ["aligned_scorer_had_adapter"]
