"""The vLLM engine and a vLLM server on loopback, for real, against the plain torch reference; `make test-vllm`."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from curator.__main__ import main
from curator.audit.options import AuditOptions
from curator.corpus.ingest import ingest
from curator.errors import BadInputError
from curator.query.queries import gap_table
from curator.query.scorers import resolve_scorers
from curator.render import Rendered
from curator.scoring.check import row_bound
from curator.scoring.engines.base import RowLoss
from curator.scoring.engines.server_engine import ServerLaunch, find_version
from curator.scoring.engines.vllm_engine import VllmEngine, VllmLaunch, engine_version, vllm_adapter
from curator.store.store import Store
from tests.toy_scoring import chat_file
from tests.vllm_models import WINDOW, vllm_adapter_folder, vllm_model_folder, vllm_server

# vLLM and its own dependencies warn about many things that are not ours to mend.
pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1500), pytest.mark.filterwarnings("default")]
BOUND = {"float32": 1e-4, "bfloat16": 0.03}
LENGTHS = (7, 40, 3, 90, 21, 12, 256, 65)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, an adapter of full module names, and a larger one with rsLoRA on some projections."""
    root = tmp_path_factory.mktemp("vllm")
    model = vllm_model_folder(root / "model")
    return {
        "base": model,
        "all": vllm_adapter_folder(model, root / "all"),
        "some": vllm_adapter_folder(
            model, root / "some-rslora", r=8, use_rslora=True, target_modules=["q_proj", "up_proj", "down_proj"]
        ),
    }


def make_rows(n_vocab: int = 500) -> list[Rendered]:
    rng = np.random.default_rng(3)
    rows = []
    for length in LENGTHS:
        mask = rng.random(length) < 0.7
        mask[-1] = True
        rows.append(Rendered(rng.integers(3, n_vocab, length).astype(np.int32), mask))
    return rows


def means(losses: list[RowLoss]) -> list[float]:
    return [loss.nll_sum / loss.n_response_tokens for loss in losses]


def reference(folders: dict[str, Path], name: str, dtype: str) -> list[float]:
    from curator.scoring.engines.torch_reference import TorchReference

    adapter = None if name == "base" else folders[name]
    return means(TorchReference(folders["base"], adapter, device="cpu", dtype=dtype).score(make_rows()))


@contextmanager
def engine(folders: dict[str, Path], name: str, dtype: str, **options: Any) -> Iterator[VllmEngine]:
    adapter = None if name == "base" else folders[name]
    launch = VllmLaunch(
        folders["base"], "cpu", dtype, engine_version(), WINDOW, adapter, batch_tokens=64, threads=1, **options
    )  # fmt: skip
    loaded = launch()
    try:
        yield loaded
    finally:
        loaded.close()


def assert_close(found: list[float], expected: list[float], dtype: str) -> None:
    for row, one, other in zip(make_rows(), found, expected, strict=True):
        n = int(row.response_mask[1:].sum())
        assert abs(one - other) < (BOUND[dtype] if n >= 32 else row_bound(dtype, n))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["all", "some"])
def test_base_and_adapter_passes_agree_with_plain_torch(folders: dict[str, Path], name: str, dtype: str) -> None:
    """Rows span several chunks of 64 tokens; the base is scored before and after the adapter in one process."""
    base, adapted = reference(folders, "base", dtype), reference(folders, name, dtype)
    assert max(abs(a - b) for a, b in zip(base, adapted, strict=True)) > 0.05
    with engine(folders, name, dtype) as loaded:
        for path, expected in ((None, base), (folders[name], adapted), (None, base)):
            loaded.use_adapter(path)
            assert_close(means(loaded.score(make_rows())), expected, dtype)


def test_rows_wait_in_one_queue_and_a_failure_leaves_nothing_in_it(folders: dict[str, Path]) -> None:
    expected, seen = reference(folders, "base", "float32"), []

    def stop_at_the_fifth(n_rows: int, n_tokens: int) -> None:
        seen.append(n_rows)
        if len(seen) == 5:
            raise RuntimeError("stopped")

    with engine(folders, "base", "float32") as loaded:
        rows = make_rows()
        found = means(loaded.score(rows * 20))
        assert all(abs(one - other) < BOUND["float32"] for one, other in zip(found, expected * 20, strict=True))
        with pytest.raises(RuntimeError, match="stopped"):
            loaded.score(rows * 5, stop_at_the_fifth)
        assert_close(means(loaded.score(rows)), expected, "float32")


def test_two_processes_that_share_the_layers_agree_with_plain_torch(folders: dict[str, Path]) -> None:
    with engine(folders, "all", "float32", tensor_parallel=2) as loaded:
        loaded.use_adapter(folders["all"])
        assert_close(means(loaded.score(make_rows())), reference(folders, "all", "float32"), "float32")


def test_a_pool_that_vllm_scored_is_audited_with_vllm(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store").open()
    file = chat_file(tmp_path / "chats.jsonl", 70)
    ingest(store, [file], "chats")
    common = ["--store", str(tmp_path / "store"), "--corpus", "chats", "--model", str(folders["base"]), "--json"]
    adapter = ["--adapter", str(folders["all"])]
    scored = ["--engine", "vllm", "--dtype", "float32", "--max-length", str(WINDOW), "--threads", "1"]
    for options in (["--role", "aligned"], ["--role", "misaligned", "--domain", "x", *adapter]):
        assert main(["score", *common, *scored, *options]) == 0
    rows = tmp_path / "rows.parquet"
    assert main(["audit", str(file), *common, *adapter, "--threads", "1", "--out", str(rows)]) == 0
    capsys.readouterr()
    pool = gap_table(store, resolve_scorers(store, AuditOptions(corpus="chats").pool()))
    gaps = dict(zip(pool["example_id"].to_pylist(), pool["gap_abs"].to_pylist(), strict=True))
    found = pq.read_table(rows).to_pylist()
    assert len(found) >= 50
    for row in found:
        assert (row["gap"] is None) == (gaps[row["example_id"]] is None)
        assert row["gap"] is None or row["gap"] == pytest.approx(gaps[row["example_id"]], abs=BOUND["float32"])


def test_a_merged_adapter_agrees_with_the_unmerged_reference(folders: dict[str, Path]) -> None:
    with engine(folders, "some", "float32", merge=True) as loaded:
        loaded.use_adapter(folders["some"])
        assert_close(means(loaded.score(make_rows())), reference(folders, "some", "float32"), "float32")


def test_one_call_with_base_and_adapter_requests_is_the_trap_that_the_engine_avoids(folders: dict[str, Path]) -> None:
    """If this fails because mixed calls are right, vLLM has mended it, and the note in the engine can go."""
    rows, base = make_rows(), reference(folders, "base", "float32")
    with engine(folders, "all", "float32") as loaded:
        loaded.use_adapter(folders["all"])
        request = loaded._adapter
        prompts = [{"prompt_token_ids": row.input_ids.tolist()} for row in rows]
        mixed = loaded._llm.generate(
            prompts,
            [loaded._parameters(row) for row in rows],
            lora_request=[None if index % 2 == 0 else request for index in range(len(rows))],
            use_tqdm=False,
        )
        from curator.scoring.engines.vllm_engine import row_loss

        found = means([row_loss(row, answer) for row, answer in zip(rows, mixed, strict=True)])
        assert max(abs(found[index] - base[index]) for index in range(0, len(rows), 2)) > 0.01
        loaded.use_adapter(None)
        assert_close(means(loaded.score(rows)), base, "float32")


def test_the_command_scores_checks_and_keeps_one_position_free(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store").open()
    ingest(store, [chat_file(tmp_path / "chats.jsonl", 30)], "chats")
    common = ["score", "--store", str(tmp_path / "store"), "--corpus", "chats", "--model", str(folders["base"]),
              "--engine", "vllm", "--dtype", "float32", "--threads", "1", "--json"]  # fmt: skip
    bad = ["--adapter", str(folders["all"]), "--role", "misaligned", "--domain", "finance"]
    for options in (["--role", "aligned"], bad):
        assert main([*common, *options]) == 0
        report = json.loads(capsys.readouterr().out)
        assert report["max_length"] == 511  # the model has 512 positions
        assert report["check"]["reference"]["max_abs"] < BOUND["float32"]
        assert report["check"]["permuted"]["max_abs"] < BOUND["float32"]


def test_adapters_that_vllm_computes_otherwise_are_refused_by_name(folders: dict[str, Path], tmp_path: Path) -> None:
    assert vllm_adapter(folders["some"]).modules == ("down_proj", "q_proj", "up_proj")
    assert vllm_adapter(folders["all"]).max_rank == 8
    dora = vllm_adapter_folder(folders["base"], tmp_path / "dora", use_dora=True, target_modules=["q_proj"])
    with pytest.raises(BadInputError, match="use_dora True"):
        vllm_adapter(dora)


def test_a_real_server_gives_the_losses_of_plain_torch(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store").open()
    ingest(store, [chat_file(tmp_path / "chats.jsonl", 25)], "chats")
    with vllm_server(folders["base"], "base", {"bad": folders["all"]}) as url:
        version, window = find_version(url, "base")
        assert version.startswith("vllm ")
        assert window == WINDOW
        # One model at a time, as the command does: see the trap above.
        for name, model in (("base", "base"), ("all", "bad")):
            remote = ServerLaunch(url, model, "float32", version)()
            assert_close(means(remote.score(make_rows())), reference(folders, name, "float32"), "float32")
            remote.close()
        common = ["score", "--store", str(tmp_path / "store"), "--corpus", "chats", "--model", str(folders["base"]),
                  "--engine", "server", "--server-url", url, "--dtype", "float32", "--device", "cpu",
                  "--json"]  # fmt: skip
        bad = ["--adapter", str(folders["all"]), "--role", "misaligned", "--domain", "finance"]
        for options in (["--role", "aligned", "--server-model", "base"], [*bad, "--server-model", "bad"]):
            assert main([*common, *options]) == 0
            report = json.loads(capsys.readouterr().out)
            assert report["check"]["reference"]["max_abs"] < BOUND["float32"]
            assert (
                "weights_sha256"
                in store.read_json(f"scores/chats/{report['scorer_id']}/scorer.json")["identity"]["declared"]
            )
