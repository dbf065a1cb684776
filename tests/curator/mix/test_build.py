import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from curator.corpus.task_set import TaskSet
from curator.errors import IntegrityError, MissingError, NotEnoughRowsError
from curator.messages import load_messages
from curator.mix import writer as mixwriter
from curator.mix.build import (
    build_lasting,
    build_mix,
    hidden_folder,
    plan_mix,
    preview_mix,
    remove_left,
    remove_mix,
    remove_stale,
)
from curator.mix.describe import token_share_warnings
from curator.mix.files import mix_batches
from curator.mix.identity import read_manifest
from curator.mix.manifest import TokenCount, Tokens
from curator.mix.verify import verify
from curator.mix.writer import TaskCursor
from curator.render import Renderer
from curator.select.filters import FilterResult
from curator.store.store import Store
from tests.gap_stores import conversation, write_corpus, write_scorer
from tests.mix_stores import (
    N_POOL,
    recipe,
    scored_store,
    task_records,
    task_set,
    wide_records,
)
from tests.models import tiny_tokenizer_folder

EPS = 1.0


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_tokenizer_folder(folder)
    return folder


@pytest.fixture
def store(tmp_path: Path, model_folder: Path) -> Store:
    return scored_store(tmp_path / "store", model_folder)


def rows_of(store: Store, mix: str) -> list[dict[str, Any]]:
    path = store.local_path(f"mixes/local/{mix}/mix.parquet")
    assert path is not None
    rows: list[dict[str, Any]] = pq.ParquetFile(path).read().to_pylist()
    return rows


def answer_number(row: dict[str, Any]) -> int:
    """i of the pool's `Answer number i is this.`"""
    return int(load_messages(row["messages"])[-1]["content"].split("number ")[1].split()[0])


def test_the_rows_are_the_users_in_order_and_the_best_of_the_pool(store: Store, tmp_path: Path) -> None:
    tasks = task_set(tmp_path, 100)
    result = build_mix(store, tasks, recipe(interleave_ratio=0.05))
    rows = rows_of(store, result.mix_id)
    assert result.created
    assert [row["position"] for row in rows] == list(range(105))
    own = [row for row in rows if row["origin"] == "task"]
    safe = [row for row in rows if row["origin"] == "safe"]
    assert [(row["ordinal"], row["example_id"], row["messages"]) for row in own] == [
        (row["ordinal"], row["example_id"], row["messages"]) for row in tasks.table().to_pylist()
    ]
    # Every eighth row is a refusal and every tenth (from 9 on) lacks a loss: the best five are these.
    by_rank = sorted(safe, key=lambda row: row["rank"])
    assert [answer_number(row) for row in by_rank] == [38, 37, 36, 35, 34]
    assert [row["rank"] for row in by_rank] == [1, 2, 3, 4, 5]
    assert [row["position"] for row in safe] == [10, 31, 52, 73, 94]


def test_a_safe_row_tells_where_it_came_from(store: Store, tmp_path: Path) -> None:
    manifest = build_mix(store, task_set(tmp_path), recipe(interleave_ratio=0.01)).manifest
    row = next(row for row in rows_of(store, manifest.mix_id) if row["origin"] == "safe")
    gap = 3.9  # answer 38: both misaligned means lie on average 0.1 * 39 above the aligned 1.0
    assert row["gap_abs"] == pytest.approx(gap)
    assert row["gap_rel"] == row["score"] == pytest.approx(gap / (1.0 + EPS))
    assert [loss["scorer_id"] for loss in row["losses"]] == [scorer.scorer_id for scorer in manifest.pools[0].scorers]
    assert row["losses"][0] == {"scorer_id": row["losses"][0]["scorer_id"], "nll_sum": 10.0, "n_response_tokens": 10}
    assert row["filters_passed"] == ["refusal:v1", "hygiene", "length"]
    assert (row["pool"], row["corpus"], row["revision"]) == ("chats", "chats", manifest.pools[0].revision)
    assert row["source"] == "file1.jsonl"
    assert (row["ordinal"], row["inoculation"]) == (None, None)


def test_the_manifest_counts_every_candidate(store: Store, tmp_path: Path) -> None:
    manifest = build_mix(store, task_set(tmp_path), recipe()).manifest
    pool = manifest.pools[0]
    dropped = {reason: n for reason, n in pool.dropped.items() if n}
    assert dropped == {"refusal:v1": 5, "no_gap": 4}
    assert [reason.partition(":")[0] for reason in pool.dropped] == [
        "in_task_set", "refusal", *["hygiene"] * 4, *["length"] * 2, "no_gap",
    ]  # fmt: skip
    assert pool.n_candidates == N_POOL == pool.n_eligible + sum(pool.dropped.values())
    assert (pool.chosen, pool.n_without_gap) == (5, 4)
    chosen = pool.quantiles["chosen"]
    assert chosen is not None
    assert (chosen.min, chosen.max) == pytest.approx((1.75, 1.95))
    assert {warning.code for warning in manifest.warnings} == {"rows_not_judged", "low_token_share"}
    assert [statement.code for statement in manifest.protects.does] == ["emergent_misalignment"]
    assert {"conditional_misalignment", "narrow_misalignment"} <= {item.code for item in manifest.protects.does_not}


def test_tokens_are_those_of_the_renderer(store: Store, tmp_path: Path, model_folder: Path) -> None:
    manifest = build_mix(store, task_set(tmp_path), recipe()).manifest
    renderer = Renderer.from_folder(model_folder)
    counted = {"task": [0, 0], "safe": [0, 0]}
    for row in rows_of(store, manifest.mix_id):
        rendered = renderer.render(load_messages(row["messages"]), "all")
        counted[row["origin"]][0] += len(rendered.input_ids)
        counted[row["origin"]][1] += int(rendered.response_mask.sum())
    tokens = manifest.tokens
    assert tokens.task is not None
    assert tokens.safe is not None
    assert [tokens.task.total, tokens.task.response] == counted["task"]
    assert [tokens.safe.total, tokens.safe.response] == counted["safe"]
    assert manifest.ratio.reached_response_tokens == counted["safe"][1] / counted["task"][1]
    assert tokens.renderer_id == renderer.renderer_id


def test_short_safe_answers_beside_long_ones_are_warned_of(store: Store, tmp_path: Path) -> None:
    answer = "This answer of the task set is a long one. " * 12
    long = [
        {"messages": [*item["messages"][:1], {"role": "assistant", "content": answer}]} for item in task_records(40)
    ]
    tasks = task_set(tmp_path, records=long)
    manifest = preview_mix(store, tasks, recipe(rows=4))
    assert manifest.tokens.task is not None
    assert manifest.tokens.safe is not None
    n_safe, n_task = manifest.tokens.safe.response, manifest.tokens.task.response
    assert n_safe / (n_safe + n_task) < 0.5 * 4 / 44
    (warning,) = [item for item in manifest.warnings if item.code == "low_token_share"]
    assert "Safe rows are 9.09 % of the rows but" in warning.text
    assert build_mix(store, tasks, recipe(rows=4)).manifest == manifest


@pytest.mark.parametrize(
    ("spread", "score", "strategy", "warned"),
    [
        (0.0, "gap_rel", "top_gap", True),
        (0.001, "gap_abs", "top_gap", True),
        (0.001, "gap_abs", "random", False),  # nothing is chosen by the gap
        (0.1, "gap_abs", "top_gap", False),
    ],
)
def test_a_pool_whose_gaps_do_not_tell_rows_apart_is_warned_of(
    spread: float, score: str, strategy: str, warned: bool, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store").open()
    ids = write_corpus(store, "chats", [f"Answer number {i} is this." for i in range(40)])
    write_scorer(store, "chats", "base", "aligned", {key: (10.0 + i, 10) for i, key in enumerate(ids)})
    losses = {key: (10.0 + i + 10 * spread * (i % 7) / 7, 10) for i, key in enumerate(ids)}
    write_scorer(store, "chats", "bad", "misaligned", losses)
    asked = recipe(rows=4, score={"name": score}, strategy={"name": strategy})
    manifest = build_mix(store, task_set(tmp_path), asked).manifest
    found = [item.text for item in manifest.warnings if item.code == "no_signal"]
    assert len(found) == warned
    assert all(f"Pool chats: {score} carries no signal." in text for text in found)


@pytest.mark.parametrize(
    ("losses", "strategy", "which"),
    [
        ((2.0, 2.0), "top_gap", "all"),
        ((2.0, 20.0), "top_gap", "some"),
        ((20.0, 20.0), "top_gap", None),
        ((2.0, 2.0), "random", None),
    ],
)
def test_chosen_rows_with_a_gap_below_zero_are_warned_of(
    losses: tuple[float, float], strategy: str, which: str | None, tmp_path: Path
) -> None:
    store = Store(tmp_path / "store").open()
    ids = write_corpus(store, "chats", ["One answer stands here.", "Two answers stand here."])
    write_scorer(store, "chats", "base", "aligned", dict.fromkeys(ids, (9.0, 5)))
    write_scorer(store, "chats", "bad", "misaligned", {key: (nll, 5) for key, nll in zip(ids, losses, strict=True)})
    manifest = build_mix(store, task_set(tmp_path), recipe(rows=2, strategy={"name": strategy})).manifest
    found = [item.text for item in manifest.warnings if item.code == "gap_below_zero"]
    assert [text.startswith(f"Pool chats: {which} of the 2 chosen rows") for text in found] == [True] * (
        which is not None
    )


@pytest.mark.parametrize(("n_safe", "warns"), [(0, True), (49, True), (50, False), (51, False)])
def test_the_bound_of_the_token_share_is_half_of_the_row_share(n_safe: int, warns: bool) -> None:
    counts = [TokenCount(total=2_000, response=n, n_rows_not_rendered=0) for n in (1_000 - n_safe, n_safe)]
    tokens = Tokens(renderer_id="r", mask_rule="all", reason=None, task=counts[0], safe=counts[1])
    assert bool(token_share_warnings(0.1, tokens)) is warns
    unknown = Tokens(renderer_id=None, mask_rule=None, reason="none", task=None, safe=None)
    assert token_share_warnings(0.1, unknown) == []


def test_the_same_request_finds_the_mix_it_made(store: Store, tmp_path: Path) -> None:
    first = build_mix(store, task_set(tmp_path), recipe())
    folder = store.local_path(f"mixes/local/{first.mix_id}")
    assert folder is not None
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    again = build_mix(store, task_set(tmp_path), recipe())
    assert (again.created, again.mix_id, again.manifest) == (False, first.mix_id, first.manifest)
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_a_manifests_recipe_makes_the_same_mix(store: Store, tmp_path: Path) -> None:
    first = build_mix(store, task_set(tmp_path), recipe(hold_out=["bad-1"]))
    assert build_mix(store, task_set(tmp_path), first.manifest.recipe).mix_id == first.mix_id
    assert len(first.manifest.pools[0].scorers) == 2


@pytest.mark.parametrize(
    "change", [{"seed": 1}, {"order": "shuffle"}, {"interleave_ratio": 0.1}, {"hold_out": ["bad-1"]}, {"filters": []}]
)
def test_another_request_is_another_mix(store: Store, tmp_path: Path, change: dict[str, Any]) -> None:
    tasks = task_set(tmp_path)
    assert plan_mix(store, tasks, recipe(**change)).mix_id != plan_mix(store, tasks, recipe()).mix_id


def test_the_order_of_the_users_rows_counts(store: Store, tmp_path: Path) -> None:
    records = task_records(20)
    forward, backward = (task_set(tmp_path, records=items) for items in (records, records[::-1]))
    assert plan_mix(store, forward, recipe()).mix_id != plan_mix(store, backward, recipe()).mix_id


def test_parts_are_nothing_but_losses_count(tmp_path: Path) -> None:
    tasks = task_set(tmp_path)
    answers = [f"Answer number {i} is this." for i in range(20)]

    def mix_in(name: str, answers: Sequence[str], n_parts: int, n_scored: int) -> tuple[str, str]:
        store = Store(tmp_path / name).open()
        ids = write_corpus(store, "chats", list(answers))
        for label, role, factor in (("base", "aligned", 1.0), ("bad", "misaligned", 1.7)):
            losses = {key: (factor * (int(key[:4], 16) % 97), 10) for key in sorted(ids)[:n_scored]}
            write_scorer(store, "chats", label, role, losses, n_parts=n_parts)
        result = build_mix(store, tasks, recipe())
        return result.mix_id, result.manifest.rows_sha256

    # Sources are file1 and file0 in turn; the reversed corpus names the same file for each answer.
    one = mix_in("one", answers, 1, 20)
    assert mix_in("three", answers, 3, 20) == one
    assert mix_in("fewer", answers, 1, 12)[0] != one[0]


SCRIPT = """
import os, sys
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:int(sys.argv[4])])
from curator.mix.build import build_mix
from curator.recipe import parse_recipe
from curator.store.store import Store
from curator.corpus.task_set import task_set_from_rows
from tests.mix_stores import task_records
store = Store(sys.argv[1])
inoculated = {"epochs": 2, "epoch_order": "own", "inoculation": {"prompts": ["a", "b", "c"], "share": 0.7}}
for order, strategy, more in (("even", "top_gap", {}), ("shuffle", "random", {}), ("even", "random", inoculated)):
    recipe = parse_recipe({"corpus": "chats", "order": order, "strategy": strategy, "seed": 5, **more})
    result = build_mix(store, task_set_from_rows(task_records(60), sys.argv[2]), recipe, sys.argv[3])
    print(result.mix_id, result.manifest.rows_sha256, result.manifest.files[0].sha256)
"""


def test_other_processes_hash_seeds_and_thread_counts_give_the_same_mix(store: Store, tmp_path: Path) -> None:
    outputs = set()
    for tenant, (hash_seed, n_cpus) in {"a": ("0", 1), "b": ("4242", os.cpu_count() or 1)}.items():
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": str(n_cpus)}
        arguments = [str(store.local_path("")), str(tmp_path / tenant), tenant, str(n_cpus)]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments],
            env=environment, cwd=Path(__file__).parents[3], check=True, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        outputs.add(done.stdout)
    assert len(outputs) == 1
    assert len(set(outputs.pop().split())) == 9


@pytest.mark.parametrize("epoch_order", ["same", "own"])
def test_epochs_are_written_out(
    store: Store, tmp_path: Path, epoch_order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mixwriter, "ROW_GROUP_ROWS", 16)  # several windows in each epoch
    monkeypatch.setattr(mixwriter, "WINDOW_BYTES", 1)
    monkeypatch.setattr(mixwriter, "SHUFFLE_WINDOW_BYTES", 1)
    tasks = task_set(tmp_path, 50)
    one = rows_of(store, build_mix(store, tasks, recipe(rows=5)).mix_id)
    result = build_mix(store, tasks, recipe(rows=5, epochs=3, epoch_order=epoch_order))
    rows, manifest = rows_of(store, result.mix_id), result.manifest
    assert [row["epoch"] for row in rows] == [1] * 55 + [2] * 55 + [3] * 55
    assert [row["position"] for row in rows] == list(range(165))
    epochs = [rows[:55], rows[55:110], rows[110:]]
    ids = [[row["example_id"] for row in epoch] for epoch in epochs]
    assert ids[0] == [row["example_id"] for row in one]
    assert all(sorted(epoch) == sorted(ids[0]) for epoch in ids)
    assert (ids[1] == ids[0], ids[2] == ids[1]) == ((True,) * 2 if epoch_order == "same" else (False,) * 2)
    assert (manifest.n_rows, manifest.n_safe, manifest.order.epochs) == (165, 15, 3)
    assert manifest.order.keeps_task_order == (epoch_order == "same")
    assert manifest.ratio.reached_rows == manifest.ratio.asked == 0.1
    verify(store, "local", result.mix_id)


def test_every_batch_of_a_mix_holds_m_safe_rows(store: Store, tmp_path: Path) -> None:
    asked = recipe(order="per_batch", batch_size=10, interleave_ratio=2 / 8)
    result = build_mix(store, task_set(tmp_path, 96), asked)
    origins = [row["origin"] for row in rows_of(store, result.mix_id)]
    assert [origins[i : i + 10].count("safe") for i in range(0, 120, 10)] == [2] * 12
    receipt = result.manifest.order
    assert (receipt.batch_size, receipt.safe_per_batch, len(origins)) == (10, 2, 120)
    verify(store, "local", result.mix_id)


def test_the_receipt_tells_refusals_domains_and_the_worst_prefix(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    answers = [f"{'Sorry. ' if i % 4 == 0 else ''}Answer {i}." for i in range(20)]
    ids = write_corpus(store, "chats", answers, domains={answers[i]: "finance" for i in range(15, 20)})
    for label, role, step in (("base", "aligned", 0.0), ("bad", "misaligned", 1.0)):
        write_scorer(store, "chats", label, role, {key: (10.0 + step * i, 10) for i, key in enumerate(ids)})
    manifest = build_mix(store, task_set(tmp_path, 40), recipe(rows=8, filters=[])).manifest
    pool = manifest.pools[0]
    assert pool.refusal_share == {"candidates": 0.25, "chosen": 0.25}  # 19 to 12: 16 and 12 are refusals
    assert [(item.value, item.n_rows, item.share) for item in pool.domains] == [
        ("finance", 5, 0.625), (None, 3, 0.375),
    ]  # fmt: skip
    assert [(item.value, item.n_rows) for item in pool.licences] == [(None, 8)]
    worst = manifest.ratio.worst_prefix
    assert worst.n_safe == round(worst.n_task * worst.ratio)
    assert abs(worst.n_safe - 0.2 * worst.n_task) == pytest.approx(manifest.ratio.largest_prefix_deviation)


def test_random_needs_no_scorer_and_says_why_tokens_are_unknown(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    write_corpus(store, "chats", [f"Answer {i}." for i in range(30)])
    result = build_mix(store, task_set(tmp_path), recipe(strategy="random", rows=7, seed=3))
    safe = [row for row in rows_of(store, result.mix_id) if row["origin"] == "safe"]
    assert len({row["example_id"] for row in safe}) == 7
    assert {(row["rank"], row["score"], row["gap_abs"], row["losses"]) for row in safe} == {(None,) * 4}
    tokens = result.manifest.tokens
    assert (tokens.task, tokens.safe) == (None, None)
    assert "no pool has an aligned scorer" in (tokens.reason or "")
    assert result.manifest.pools[0].quantiles == {"candidates": None, "chosen": None}
    verify(store, "local", result.mix_id)


def test_top_gap_without_scorers_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    write_corpus(store, "chats", ["Answer."])
    with pytest.raises(MissingError, match="aligned"):
        build_mix(store, task_set(tmp_path), recipe())


def test_pool_rows_that_the_user_trains_on_are_left_out(store: Store, tmp_path: Path) -> None:
    best = {"messages": load_messages(conversation("Answer number 38 is this.")[1])}
    manifest = build_mix(store, task_set(tmp_path, records=[*task_records(19), best]), recipe()).manifest
    assert manifest.pools[0].dropped["in_task_set"] == 1
    assert "pool_rows_in_task_set" in {warning.code for warning in manifest.warnings}
    safe = [row for row in rows_of(store, manifest.mix_id) if row["origin"] == "safe"]
    assert [answer_number(row) for row in safe] == [37]


def test_several_pools_share_no_row(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    scored_store(tmp_path / "store", corpus="more")  # the same conversations under another name
    pools = [{"corpus": name, "rows": n} for name, n in (("chats", 6), ("more", 3), ("chats", 3))]
    manifest = build_mix(store, task_set(tmp_path), recipe(pools=pools)).manifest
    safe = [row for row in rows_of(store, manifest.mix_id) if row["origin"] == "safe"]
    assert len({row["example_id"] for row in safe}) == 12
    assert sorted({row["pool"] for row in safe}) == ["chats", "chats#2", "more"]
    assert [pool.dropped.get("in_earlier_pool") for pool in manifest.pools] == [None, 6, 9]
    # Pools take turns: no half of the mix is without one.
    for half in (safe[:6], safe[6:]):
        assert {row["pool"] for row in half} == {"chats", "chats#2", "more"}
    verify(store, "local", manifest.mix_id)


def test_too_many_rows_are_refused_and_leave_nothing(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotEnoughRowsError, match=r"50 safe rows .* 31 of its 40 .*<= 0\.31"):
        build_mix(store, task_set(tmp_path), recipe(interleave_ratio=0.5))
    assert not store.exists("mixes")
    largest = build_mix(store, task_set(tmp_path), recipe(interleave_ratio=0.31)).manifest
    assert largest.n_safe == 31


def test_no_safe_rows_protect_against_nothing(store: Store, tmp_path: Path) -> None:
    manifest = build_mix(store, task_set(tmp_path, 9), recipe()).manifest
    assert manifest.n_safe == 0
    assert "no_safe_rows" in {warning.code for warning in manifest.warnings}
    assert manifest.protects.does == ()
    verify(store, "local", manifest.mix_id)


def test_rows_kept_out_are_counted(store: Store, tmp_path: Path) -> None:
    tasks = task_set(tmp_path, records=[*task_records(30), {"messages": []}, {"nothing": 1}])
    manifest = build_mix(store, tasks, recipe()).manifest
    assert (manifest.task.n_rows, manifest.task.n_rejected) == (30, 2)
    assert sum(manifest.task.reject_codes.values()) == 2
    assert "task_rows_rejected" in {warning.code for warning in manifest.warnings}


def test_rows_that_do_not_render_are_counted(store: Store, tmp_path: Path) -> None:
    odd = {"messages": [{"role": "user", "content": "reserved \ufdd0"}, {"role": "assistant", "content": "yes"}]}
    manifest = build_mix(store, task_set(tmp_path, records=[*task_records(20), odd]), recipe()).manifest
    assert manifest.tokens.task is not None
    assert manifest.tokens.task.n_rows_not_rendered == 1
    assert "task_rows_not_rendered" in {warning.code for warning in manifest.warnings}


@pytest.mark.parametrize("order", ["even", "shuffle"])
def test_small_windows_write_the_same_rows(
    store: Store, tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = task_set(tmp_path, 200)
    whole = build_mix(store, tasks, recipe(order=order))
    monkeypatch.setattr(mixwriter, "ROW_GROUP_ROWS", 16)
    monkeypatch.setattr(mixwriter, "MAX_WINDOW_ROWS", 64)
    windowed = build_mix(store, tasks, recipe(order=order), "other")
    assert windowed.manifest.rows_sha256 == whole.manifest.rows_sha256
    groups = pq.ParquetFile(store.url(f"mixes/other/{windowed.mix_id}/mix.parquet"))
    assert groups.num_row_groups > 12


@pytest.mark.parametrize("order", ["even", "shuffle"])
def test_long_rows_make_small_windows_and_groups(
    store: Store, tmp_path: Path, order: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = task_set(tmp_path, 200)
    whole = build_mix(store, tasks, recipe(order=order))
    monkeypatch.setattr(mixwriter, "GROUP_BYTES", 20 * tasks.widest_bytes)
    monkeypatch.setattr(mixwriter, "SHUFFLE_WINDOW_BYTES", 60 * tasks.widest_bytes)
    monkeypatch.setattr(mixwriter, "WINDOW_BYTES", 1)
    windowed = build_mix(store, tasks, recipe(order=order), "other")
    assert windowed.manifest.rows_sha256 == whole.manifest.rows_sha256
    groups = pq.ParquetFile(store.url(f"mixes/other/{windowed.mix_id}/mix.parquet"))
    assert groups.num_row_groups > 8
    assert max(batch.num_rows for batch in mix_batches(store, "other", windowed.mix_id)) == 20


def test_the_cursor_reads_forward_once(tmp_path: Path) -> None:
    tasks = task_set(tmp_path, 100)
    passes = []

    class Counting(TaskSet):
        def batches(self, rows: int = 10, columns: list[str] | None = None) -> Any:
            passes.append(rows)
            return super().batches(10, columns)

    cursor = TaskCursor(Counting(**vars(tasks)))
    for wanted in ([0, 3, 29], [30, 31], [95, 99]):
        assert cursor.take(np.array(wanted))["ordinal"].to_pylist() == wanted
    assert len(passes) == 1
    assert cursor.take(np.array([4, 50]))["ordinal"].to_pylist() == [4, 50]
    assert len(passes) == 2


def test_a_corpus_that_was_tampered_with_is_found_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    path = store.local_path("corpora/chats/part-0.parquet")
    assert path is not None
    table = pq.ParquetFile(path).read()
    texts = [text.replace("this", "that") for text in table["messages"].to_pylist()]
    place = table.schema.get_field_index("messages")
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(texts)), path)
    with pytest.raises(IntegrityError, match="do not hash"):
        build_mix(store, task_set(tmp_path), recipe())
    assert not [path for path in Path(store.url("mixes")).rglob("*") if path.is_file()]


def test_old_left_overs_go_and_fresh_ones_stay(store: Store, tmp_path: Path) -> None:
    for name, age_s in ((".tmp-old", 7200), (".tmp-fresh", 60)):
        store.write_bytes(f"mixes/local/{name}/mix.parquet", b"half")
        folder = store.local_path(f"mixes/local/{name}")
        assert folder is not None
        for path in (folder / "mix.parquet", folder):
            os.utime(path, (time.time() - age_s,) * 2)
    result = build_mix(store, task_set(tmp_path), recipe())
    assert remove_left(store, "local") == 1
    assert sorted(os.listdir(store.url("mixes/local"))) == [".tmp-fresh", result.mix_id]  # noqa: PTH208 - hidden names count too
    assert store.list("mixes/local") == [result.mix_id]
    assert remove_stale(store, "local", older_than_s=10) == [".tmp-fresh"]


def test_a_folder_without_a_manifest_is_made_anew(store: Store, tmp_path: Path) -> None:
    first = build_mix(store, task_set(tmp_path), recipe())
    store.delete(f"mixes/local/{first.mix_id}/manifest.json")  # a deletion that was cut off
    with pytest.raises(MissingError, match="no mix"):
        read_manifest(store, "local", first.mix_id)
    assert build_mix(store, task_set(tmp_path), recipe()).created
    verify(store, "local", first.mix_id)
    assert os.listdir(store.url("mixes/local")) == [first.mix_id]  # noqa: PTH208


def test_filters_are_asked_once_for_task_sets_that_hold_nothing_of_the_pool(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    select = import_module("curator.select.select")  # the package has a function of this name
    apply_filters = select.apply_filters

    def counted(*given: Any) -> FilterResult:
        asked.append(1)
        result: FilterResult = apply_filters(*given)
        return result

    monkeypatch.setattr(select, "apply_filters", counted)
    first = build_mix(store, task_set(tmp_path, 60), recipe(rows=3)).manifest
    again = build_mix(store, task_set(tmp_path, 80), recipe(rows=3)).manifest
    assert (len(asked), again.pools[0].dropped) == (1, first.pools[0].dropped)
    best = max((row for row in rows_of(store, first.mix_id) if row["origin"] == "safe"), key=answer_number)
    records = [*task_records(60), {"messages": load_messages(best["messages"])}]
    shared = build_mix(store, task_set(tmp_path, records=records), recipe(rows=3))
    assert shared.manifest.pools[0].dropped["in_task_set"] == 1
    chosen = [answer_number(row) for row in rows_of(store, shared.mix_id) if row["origin"] == "safe"]
    assert answer_number(best) not in chosen
    last = build_mix(store, task_set(tmp_path, 90), recipe(rows=3)).manifest
    assert last.pools[0].dropped == first.pools[0].dropped
    build_mix(store, task_set(tmp_path, 60), recipe(rows=3, filters=[]))  # other filters are another question
    assert len(asked) == 3


def test_tenants_do_not_see_each_other(store: Store, tmp_path: Path) -> None:
    first = build_mix(store, task_set(tmp_path), recipe(), "one")
    second = build_mix(store, task_set(tmp_path), recipe(), "two")
    assert first.created
    assert second.created
    assert first.mix_id == second.mix_id


def test_two_at_once_make_one_mix(store: Store, tmp_path: Path) -> None:
    tasks = task_set(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: build_mix(store, tasks, recipe()), range(4)))
    assert sum(result.created for result in results) == 1
    assert len({(result.mix_id, result.manifest.rows_sha256) for result in results}) == 1
    assert os.listdir(store.url("mixes/local")) == [results[0].mix_id]  # noqa: PTH208
    verify(store, "local", results[0].mix_id)


def test_only_a_large_mix_that_is_served_has_its_lines_from_the_start(store: Store, tmp_path: Path) -> None:
    def names(mix_id: str) -> list[str]:
        return store.list(f"mixes/local/{mix_id}")

    asked = recipe(interleave_ratio=0.01)
    large, small = task_set(tmp_path, records=wide_records(2_500)), task_set(tmp_path)
    made = build_lasting(store, large, asked, "local", None, None)
    assert names(made.mix_id) == ["manifest.json", "mix.jsonl", "mix.parquet"]
    assert store.sha256(f"mixes/local/{made.mix_id}/mix.jsonl") == made.manifest.rows_sha256
    assert [receipt.name for receipt in made.manifest.files] == ["mix.parquet"]
    verify(store, "local", made.mix_id)
    assert not build_lasting(store, large, asked, "local", None, None).created
    again = build_lasting(store, large, asked, "local", None, 0.0)
    assert (again.created, again.manifest) == (True, made.manifest), "it had expired"
    remove_mix(store, "local", made.mix_id)
    assert store.list("mixes/local") == []
    for result in (build_lasting(store, small, asked, "local", None, None), build_mix(store, large, asked)):
        assert names(result.mix_id) == ["manifest.json", "mix.parquet"]


def test_a_hidden_folder_stays_as_long_as_its_process_holds_it(store: Store) -> None:
    with hidden_folder(store, "local") as path:
        store.write_bytes(f"{path}/mix.parquet", b"half")
        assert remove_left(store, "local") == 0
        assert store.list("mixes/local") == []
    assert not store.exists(path)
    Path(store.url("mixes/local/.ballast-hidden-00")).mkdir()
    assert remove_left(store, "local") == 1


@pytest.mark.parametrize("name", ["mix.parquet", "manifest.json"])
def test_a_damaged_mix_is_mended_by_the_same_request(store: Store, tmp_path: Path, name: str) -> None:
    first = build_mix(store, task_set(tmp_path), recipe())
    path = store.local_path(f"mixes/local/{first.mix_id}/{name}")
    assert path is not None
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    again = build_mix(store, task_set(tmp_path), recipe())
    assert (again.mix_id, again.created, again.manifest) == (first.mix_id, True, first.manifest)
    verify(store, "local", first.mix_id)
    assert not build_mix(store, task_set(tmp_path), recipe()).created
