"""Merged adapters: one rounding, another measure, and an error that scorer.json states."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from curator.__main__ import main
from curator.corpus.ingest import ingest
from curator.errors import BadInputError, IncompatibleScorersError
from curator.query.queries import resolve_scorers
from curator.recipe import Pool
from curator.scoring.engines.torch_engine import TorchEngine
from curator.scoring.engines.torch_merge import load_merged
from curator.scoring.engines.torch_model import load_model
from curator.store.store import Store
from tests.curator.scoring.test_engine import make_rows
from tests.models import tiny_adapter_folder, tiny_model_folder
from tests.toy_scoring import chat_file


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("merge")
    model = tiny_model_folder(root / "tiny")
    return model, tiny_adapter_folder(model, root / "bad")


def test_merged_losses_are_the_unmerged_ones_and_none_restores_the_base(folders: tuple[Path, Path]) -> None:
    model, adapter = folders
    rows = make_rows([40, 9, 70, 3])
    engine, merged = (TorchEngine(model, device="cpu", dtype="float32", merge=merge) for merge in (False, True))
    base = engine.score(rows)  # type: ignore[arg-type]
    for path in (adapter, None, adapter):
        for one in (engine, merged):
            one.use_adapter(path)
        for a, b in zip(engine.score(rows), merged.score(rows), strict=True):  # type: ignore[arg-type]
            assert abs(a.nll_sum - b.nll_sum) / a.n_response_tokens < 1e-5
    assert abs(merged.score(rows)[0].nll_sum - base[0].nll_sum) > 0.1  # type: ignore[arg-type]


def test_weights_are_rounded_once(folders: tuple[Path, Path]) -> None:
    model, adapter = folders
    exact = load_merged(model, adapter, "float32").state_dict()
    rounded = load_merged(model, adapter, "bfloat16").state_dict()
    narrow = load_model(model, "cpu", "bfloat16").state_dict()
    name = "model.layers.0.self_attn.q_proj.weight"
    # The base was read in bfloat16, so its rounding and one of the sum: less than one unit in the last place.
    assert rounded[name].dtype == torch.bfloat16
    assert (rounded[name].float() - exact[name]).abs().max() <= 2**-7 * exact[name].abs().max()
    assert not torch.equal(rounded[name], narrow[name])
    assert torch.equal(rounded["model.embed_tokens.weight"], narrow["model.embed_tokens.weight"])


def test_the_command_states_the_merge_error_and_no_gap_mixes_merged_with_unmerged(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, adapter = folders
    store = Store(tmp_path / "store").open()
    ingest(store, [chat_file(tmp_path / "chats.jsonl", 25)], "chats")
    common = ["score", "--store", str(tmp_path / "store"), "--corpus", "chats", "--model", str(model), "--json",
              "--device", "cpu", "--dtype", "float32", "--max-length", "300"]  # fmt: skip
    bad = ["--adapter", str(adapter), "--role", "misaligned", "--domain", "finance"]
    assert main([*common, *bad, "--merge-adapter", "--check-rows", "0"]) == 2
    assert "leave --check-rows 0 out" in capsys.readouterr().err
    assert main([*common, *bad, "--merge-adapter"]) == 0
    report = json.loads(capsys.readouterr().out)
    manifest = store.read_json(f"scores/chats/{report['scorer_id']}/scorer.json")
    assert manifest["identity"]["adapter_mode"] == "merged"
    error = manifest["checks"][0]["merge_error"]
    assert error["n_rows"] == manifest["checks"][0]["n_rows"] >= 20
    assert 0 < error["mean_abs"] <= error["max_abs"] < 1e-4
    assert abs(error["mean"]) <= error["mean_abs"]
    assert main([*common, "--role", "aligned", "--label", "plain"]) == 0
    with pytest.raises(IncompatibleScorersError, match="adapter_mode is None for the one and 'merged' for the other"):
        resolve_scorers(store, Pool(corpus="chats"))
    assert main([*common, "--role", "aligned", "--label", "whole", "--merge-adapter"]) == 0
    assert [
        scorer.scorer_id for scorer in resolve_scorers(store, Pool(corpus="chats", aligned="whole")).misaligned
    ] == [report["scorer_id"]]


def test_an_adapter_of_the_head_is_not_merged(folders: tuple[Path, Path], tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    model = load_model(folders[0], "cpu", "float32")
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM"))
    wrapped.save_pretrained(tmp_path / "head", save_embedding_layers=False)
    with pytest.raises(BadInputError, match="lm_head"):
        load_merged(folders[0], tmp_path / "head", "float32")


def test_an_adapter_that_does_not_fit_leaves_the_engine_as_it_was(folders: tuple[Path, Path], tmp_path: Path) -> None:
    model, adapter = folders
    narrow = Path(shutil.copytree(adapter, tmp_path / "narrow"))
    weights = load_file(narrow / "adapter_model.safetensors")
    halves = {name: tensor[..., : tensor.shape[-1] // 2].contiguous() for name, tensor in weights.items()}
    save_file(halves, narrow / "adapter_model.safetensors")
    engine = TorchEngine(model, device="cpu", dtype="float32", merge=True)
    engine.use_adapter(adapter)
    rows = make_rows([12, 5])
    before = engine.score(rows)  # type: ignore[arg-type]
    with pytest.raises(BadInputError, match="does not fit the model"):
        engine.use_adapter(narrow)
    assert engine.score(rows) == before  # type: ignore[arg-type]
