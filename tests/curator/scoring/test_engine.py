"""The torch engine against plain per-row transformers forwards written here, which use no code of ours."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from curator.errors import BadInputError, ScoringError
from curator.render import Rendered
from curator.scoring.engines import torch_head
from curator.scoring.engines.base import RowLoss
from curator.scoring.engines.torch_engine import TorchEngine
from curator.scoring.engines.torch_model import resolve_device, resolve_dtype
from curator.scoring.faults import FaultTolerantEngine
from tests.models import tiny_adapter_folder, tiny_model_folder

N_VOCAB = 97
BOUND = 1e-4  # nats per token, in float32


def make_rows(lengths: list[int], n_vocab: int = N_VOCAB, seed: int = 0) -> list[Rendered]:
    rng = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        mask = rng.random(length) < 0.5
        mask[-1] = True
        rows.append(Rendered(rng.integers(0, n_vocab, length).astype(np.int32), mask))
    return rows


LENGTHS = [5, 61, 17, 17, 2, 40, 33, 8, 64, 17]


def reference_losses(folder: Path, rows: list[Rendered], adapter: Path | None = None) -> list[tuple[float, int]]:
    # Eager attention is the definition: SDPA silently leaves out Gemma 2's cap on attention scores.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    if adapter is not None:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    losses = []
    for row in rows:
        ids = torch.tensor(row.input_ids[None].astype(np.int64))
        with torch.no_grad():
            log_probs = torch.log_softmax(model(input_ids=ids).logits[0].float(), dim=-1)
        picked = [-float(log_probs[t - 1, ids[0, t]]) for t in range(1, row.n_tokens) if row.response_mask[t]]
        losses.append((math.fsum(picked), len(picked)))
    return losses


def assert_agrees(engine: TorchEngine, rows: list[Rendered], expected: list[tuple[float, int]]) -> None:
    for loss, (nll_sum, n_tokens) in zip(engine.score(rows), expected, strict=True):
        assert loss.n_response_tokens == n_tokens
        assert abs(loss.nll_sum - nll_sum) / n_tokens < BOUND


SPECIAL = {
    "gemma2": {"final_logit_softcapping": 2.0, "attn_logit_softcapping": 2.0, "sliding_window": 16},
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 2.0},
    "cohere": {"logit_scale": 0.25},
    "mistral": {"sliding_window": 12},
    "opt": {},
    "gpt2": {},
    "qwen3": {"tie_word_embeddings": True},
}


def save_model(folder: Path, kind: str) -> Path:
    shape = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "pad_token_id": 0,
        "bos_token_id": 0, "eos_token_id": 1, "vocab_size": N_VOCAB,
    }  # fmt: skip
    if kind == "gpt2":
        shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128, "vocab_size": N_VOCAB}
    if kind == "opt":
        shape |= {"ffn_dim": 48, "word_embed_proj_dim": 32, "dropout": 0.0}
    config = AutoConfig.for_model(kind, **shape, **SPECIAL[kind])
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():  # random models are nearly uniform; widen them so that scale and cap matter
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text("{}")
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny matrices gain nothing from threads, and on shared cores threads wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: tiny_model_folder(root / kind, kind) for kind in ("llama", "qwen2", "gpt2")}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_agrees_with_a_plain_forward_at_any_batch_size(folders: dict[str, Path], kind: str) -> None:
    rows = make_rows(LENGTHS)
    expected = reference_losses(folders[kind], rows)
    engine = TorchEngine(folders[kind], device="cpu", dtype="float32")
    for batch_tokens in (1, 100, 10_000):  # each row alone, some padding, all in one batch
        engine.batch_tokens = batch_tokens
        assert_agrees(engine, rows, expected)


@pytest.mark.parametrize("kind", list(SPECIAL))
def test_scaled_capped_windowed_and_tied_models_are_exact(tmp_path: Path, kind: str) -> None:
    folder = save_model(tmp_path / kind, kind)
    rows = make_rows(LENGTHS)
    expected = reference_losses(folder, rows)
    assert max(nll / n for nll, n in expected) > math.log(N_VOCAB)  # far from uniform
    engine = TorchEngine(folder, device="cpu", dtype="float32", batch_tokens=200)
    assert engine._split.exact
    assert_agrees(engine, rows, expected)


def test_a_head_we_cannot_take_apart_runs_the_models_own_forward(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_model(tmp_path / "granite", "granite")
    rows = make_rows(LENGTHS)
    expected = reference_losses(folder, rows)
    monkeypatch.setattr(torch_head.SplitModel, "logits", lambda self, hidden: hidden @ hidden.T)
    engine = TorchEngine(folder, device="cpu", dtype="float32", batch_tokens=200)
    assert not engine._split.exact
    assert_agrees(engine, rows, expected)


def test_adapters_switch_on_one_base_and_the_base_pass_is_untouched(folders: dict[str, Path], tmp_path: Path) -> None:
    base = folders["llama"]
    adapters = [tiny_adapter_folder(base, tmp_path / f"a{seed}", seed=seed) for seed in (1, 2)]
    rows = make_rows(LENGTHS)
    engine = TorchEngine(base, device="cpu", dtype="float32", batch_tokens=150)
    alone = engine.score(rows)
    for adapter in (adapters[0], adapters[1], adapters[0]):
        engine.use_adapter(adapter)
        assert_agrees(engine, rows, reference_losses(base, rows, adapter))
    engine.use_adapter(None)
    assert engine.score(rows) == alone
    shifts = [
        abs(a[0] - b.nll_sum) / b.n_response_tokens
        for a, b in zip(reference_losses(base, rows, adapters[0]), alone, strict=True)
    ]
    assert max(shifts) > 100 * BOUND  # the adapters do something


def test_the_same_model_twice_gives_the_same_losses(folders: dict[str, Path]) -> None:
    rows = make_rows(LENGTHS)
    once, twice = (TorchEngine(folders["llama"], device="cpu", dtype="float32").score(rows) for _ in range(2))
    assert once == twice


def test_a_context_free_model_matches_its_closed_form(tmp_path: Path) -> None:
    """With all decoder weights zero the last norm gives zero states, so the head's bias alone decides."""
    config = AutoConfig.for_model("phi", vocab_size=N_VOCAB, hidden_size=16, intermediate_size=16,
                                  num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=128,
                                  bos_token_id=0, eos_token_id=1)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    bias = np.linspace(-3.0, 3.0, N_VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.get_output_embeddings().bias.copy_(torch.tensor(bias))
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    log_z = math.log(np.exp(bias).sum())
    rows = make_rows(LENGTHS)
    for batch_tokens in (1, 50, 5_000):
        engine = TorchEngine(tmp_path, device="cpu", dtype="float32", batch_tokens=batch_tokens)
        for row, loss in zip(rows, engine.score(rows), strict=True):
            closed = sum(log_z - bias[t] for t, on in zip(row.input_ids[1:], row.response_mask[1:], strict=True) if on)
            assert loss.nll_sum == pytest.approx(closed, abs=1e-5 * row.n_tokens)


def test_chunks_of_the_vocabulary_projection_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    hidden, head, targets = torch.randn(300, 8), torch.randn(8, 50), torch.randint(0, 50, (300,))
    seen: list[int] = []

    def logits(part: torch.Tensor) -> torch.Tensor:
        seen.append(len(part))
        return part @ head

    monkeypatch.setitem(torch_head.CHUNK_BYTES, "cpu", 4 * 50 * 64)
    nll = torch_head.response_nll(hidden, targets, logits, 50)
    whole = -torch.log_softmax((hidden @ head).double(), -1)[torch.arange(300), targets]
    assert max(seen) == 64
    torch.testing.assert_close(nll, whole, atol=1e-5, rtol=0)


def test_bfloat16_stays_near_float32(folders: dict[str, Path]) -> None:
    rows = make_rows([64] * 4)
    engine = TorchEngine(folders["llama"], device="cpu", dtype="bfloat16")
    for loss, (nll_sum, n_tokens) in zip(engine.score(rows), reference_losses(folders["llama"], rows), strict=True):
        assert abs(loss.nll_sum - nll_sum) / n_tokens < 0.05


def test_a_response_token_at_position_0_is_not_counted(folders: dict[str, Path]) -> None:
    row = make_rows([12])[0]
    mask = np.zeros(12, dtype=bool)
    mask[[3, 7]] = True
    with_first = mask.copy()
    with_first[0] = True
    engine = TorchEngine(folders["llama"], device="cpu", dtype="float32")
    plain, first = engine.score([Rendered(row.input_ids, mask), Rendered(row.input_ids, with_first)])
    assert first.n_response_tokens == plain.n_response_tokens == 2
    assert first.nll_sum == pytest.approx(plain.nll_sum, abs=1e-5)


def test_rows_that_cannot_be_scored_are_refused(folders: dict[str, Path]) -> None:
    engine = TorchEngine(folders["llama"], device="cpu", dtype="float32")
    empty = Rendered(np.arange(4, dtype=np.int32), np.zeros(4, dtype=bool))
    with pytest.raises(ScoringError, match="without a countable response token"):
        engine.score([empty])
    foreign = Rendered(np.array([1, 2, 999_999], dtype=np.int32), np.ones(3, dtype=bool))
    with pytest.raises(ScoringError, match="another model's tokenizer"):
        engine.score([foreign])


def test_an_adapter_that_does_not_fit_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    foreign = tiny_adapter_folder(folders["gpt2"], tmp_path / "foreign")
    engine = TorchEngine(folders["llama"], device="cpu", dtype="float32")
    with pytest.raises(BadInputError, match="does not fit the model"):
        engine.use_adapter(foreign)


def test_devices_and_dtypes_that_are_not_there_are_refused() -> None:
    with pytest.raises(BadInputError, match="unknown"):
        resolve_device("tpu")
    with pytest.raises(BadInputError, match="this machine has"):
        resolve_device("cuda:99")
    assert resolve_dtype("float32", "cpu") == "float32"
    assert resolve_dtype("auto", "cpu") in ("float32", "bfloat16")


def test_a_batch_that_does_not_fit_is_halved_and_a_row_that_does_not_is_marked(folders: dict[str, Path]) -> None:
    class Small(TorchEngine):
        """Holds 70 padded tokens; torch's own error stands for the device's."""

        def _score_batch(self, inputs: Any) -> Any:
            if len(inputs) * max(len(ids) for ids, _, _ in inputs) > 70:
                raise torch.OutOfMemoryError("70 tokens at most")
            return super()._score_batch(inputs)

    rows = make_rows([*LENGTHS, 100])
    engine = Small(folders["llama"], device="cpu", dtype="float32", batch_tokens=400)
    found = FaultTolerantEngine(engine).score(rows)  # type: ignore[arg-type]
    assert found[-1] == "out of memory: OutOfMemoryError: 70 tokens at most"
    for loss, (nll_sum, n_tokens) in zip(found[:-1], reference_losses(folders["llama"], rows[:-1]), strict=True):
        assert isinstance(loss, RowLoss)
        assert abs(loss.nll_sum - nll_sum) / n_tokens < BOUND
