"""The estimate of peak memory beside what torch allocates, and what a run says and does about it."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from curator.render import Renderer
from tests.trainer.allocations import peak_allocated
from tests.trainer.proofs import adapter_folder, vectors_file
from tests.trainer.sftruns import argv, document
from tests.trainer.shapes import Shape, shaped_model, shaped_rows
from trainer import sft
from trainer.config import TrainConfig, parse_config
from trainer.config.options import parse_arguments
from trainer.loop.fit import fit, load
from trainer.loop.forecast import forecast, is_out_of_memory, naming_memory, proposal
from trainer.loop.memory import DecoderShape, Work, estimate
from trainer.runs import device

LEAST, MOST = 0.9, 1.4  # the estimate, as a multiple of the measured peak
WIDE_HEAD = Shape(256, 4, 704, 4, 2, 4_000)
DEEP = Shape(128, 8, 512, 4, 2, 1_000)
QWEN_7B = {
    "model_type": "qwen2", "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28,
    "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False,
}  # fmt: skip


def config_of(model: Path, **fields: Any) -> TrainConfig:
    return parse_config(
        {"model": model, "out": model / "out", "data": "-", "device": "cpu", "dtype": "float32", "max_steps": 2,
         "epochs": 2, "grad_accum": 1, "gradient_checkpointing": False} | fields
    )  # fmt: skip


def measured_and_estimated(folder: Path, shape: Shape, n_labelled: int, n_tokens: int, **fields: Any) -> float:
    """The estimate over the measured peak of two steps."""
    config = config_of(shaped_model(folder, shape), **fields)
    prepared = shaped_rows(2 * config.batch_size, n_tokens, n_labelled)
    config.out.mkdir()

    def train() -> None:
        fit(load(config), prepared, Renderer.from_folder(folder), config, config.out / "metrics.jsonl")

    found = DecoderShape.of(folder)
    assert found is not None
    needed = estimate(found, config, Work.of(config, prepared, config.dtype, "cpu"))
    return needed.total / peak_allocated(train)


def test_the_estimate_is_close_to_what_is_allocated(tmp_path: Path) -> None:
    ratio = measured_and_estimated(tmp_path, Shape(128, 3, 256, 2, 1, 800), 60, 128, batch_size=2)
    assert LEAST < ratio < MOST


@pytest.mark.slow
@pytest.mark.parametrize(
    ("shape", "n_labelled", "n_tokens", "fields"),
    [
        (WIDE_HEAD, 128, 256, {"batch_size": 2}),
        (WIDE_HEAD, 128, 256, {"batch_size": 2, "gradient_checkpointing": True}),
        (WIDE_HEAD, 128, 256, {"batch_size": 4, "dtype": "bfloat16"}),
        (DEEP, 256, 512, {"batch_size": 1}),
        (DEEP, 20, 512, {"batch_size": 2, "gradient_checkpointing": True}),
        (DEEP, 20, 256, {"batch_size": 4, "dtype": "bfloat16", "gradient_checkpointing": True}),
        (DEEP, 8, 256, {"batch_size": 4, "gradient_checkpointing": True, "defences": [{"name": "kl"}]}),
        (DEEP, 8, 256, {"batch_size": 4, "gradient_checkpointing": True, "defences": [{"name": "ldifs", "every": 1}]}),
        (DEEP, 8, 256, {"batch_size": 4, "gradient_checkpointing": True,
                        "defences": [{"name": "treft", "tokens": "all"}]}),
        (DEEP, 8, 256, {"batch_size": 4, "defences": [{"name": "gating"}]}),
        (DEEP, 64, 256, {"batch_size": 2, "full": True}),
        (DEEP, 64, 256, {"batch_size": 2, "full": True, "defences": [{"name": "kl"}]}),
    ],
)  # fmt: skip
def test_it_follows_batch_length_checkpointing_and_defences(
    tmp_path: Path, shape: Shape, n_labelled: int, n_tokens: int, fields: dict[str, Any]
) -> None:
    assert LEAST < measured_and_estimated(tmp_path, shape, n_labelled, n_tokens, **fields) < MOST


@pytest.mark.slow
@pytest.mark.parametrize("name", ["steering", "inoculation_adapter"])
def test_it_follows_defences_that_are_read_from_a_file(tmp_path: Path, name: str) -> None:
    made: dict[str, Any] = (
        {"vectors": vectors_file(tmp_path / "v.safetensors", DEEP.layers + 1, DEEP.width), "layers": [1, 4, 7]}
        if name == "steering"
        else {"adapter": adapter_folder(shaped_model(tmp_path / "base", DEEP), tmp_path / "trait")}
    )
    ratio = measured_and_estimated(tmp_path / "model", DEEP, 64, 256, batch_size=4, defences=[{"name": name, **made}])
    assert LEAST < ratio < MOST


def test_parameters_of_the_headers_and_of_the_settings_agree(llama: Path, tmp_path: Path) -> None:
    found = DecoderShape.of(llama)
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    without_weights = DecoderShape.of(tmp_path)
    assert found is not None
    assert found == without_weights
    assert found.n_parameters == sum(p.numel() for p in load(config_of(llama, full=True)).model.parameters())


def test_weights_that_lie_there_twice_count_once(llama: Path, tmp_path: Path) -> None:
    once = DecoderShape.of(llama)
    assert once is not None
    twice = Path(shutil.copytree(llama, tmp_path / "twice"))
    tensors = load_file(twice / "model.safetensors")
    save_file({f"other.{name}": tensor for name, tensor in tensors.items()}, twice / "consolidated.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model.safetensors")}
    (twice / "model.safetensors.index.json").write_text(json.dumps(index))
    assert DecoderShape.of(twice) == once


def test_a_7b_needs_what_is_known_of_it() -> None:
    shape = DecoderShape.from_settings(QWEN_7B)
    assert shape is not None
    assert shape.n_parameters == pytest.approx(7.616e9, rel=0.001)
    plain = Work(4, 2048, 1024, 2, on_gpu=True, checkpointing=False)
    config = parse_config({"model": "m", "out": "o", "data": "d"})
    block = estimate(shape, config, plain).activations / shape.n_blocks / plain.n_cells / 1024
    assert 290 < block < 340, "KiB of a block and token"
    saved = Work(4, 2048, 1024, 2, on_gpu=True, checkpointing=True)
    assert 7 <= estimate(shape, config, saved).activations / shape.n_blocks / plain.n_cells / 1024 < 8
    assert estimate(shape, config, plain).weights == 2 * shape.n_parameters


def test_settings_that_say_too_little_give_no_estimate(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2}')
    found = forecast(config_of(tmp_path, gradient_checkpointing=None), None, "cpu", "float32")
    assert found.shape is None
    assert found.fits
    assert found.line().startswith("memory: no estimate")
    assert found.as_dict()["estimate_bytes"] is None


@pytest.fixture
def seven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a 7B model's config.json, on a device with 80 GiB free."""
    (tmp_path / "config.json").write_text(json.dumps(QWEN_7B))
    monkeypatch.setattr("trainer.loop.forecast.free_bytes", lambda device: 80 * 2**30)
    return tmp_path


def test_checkpointing_comes_on_by_itself_where_it_is_needed(seven: Path) -> None:
    found = forecast(config_of(seven, gradient_checkpointing=None, batch_size=8), None, "cuda", "bfloat16")
    assert found.chosen
    assert found.fits
    assert found.config.gradient_checkpointing is True
    assert "gradient checkpointing is on, since without it" in found.line()
    assert found.warnings() == []
    small = forecast(
        config_of(seven, gradient_checkpointing=None, batch_size=1, max_length=512), None, "cuda", "bfloat16"
    )
    assert (small.chosen, small.config.gradient_checkpointing) == (False, False)


@pytest.mark.parametrize("flag", [True, False])
def test_who_names_it_decides(seven: Path, flag: bool) -> None:
    given = parse_arguments(
        ["--model", str(seven), "--data", "d", "--out", "o", "--batch-size", "8",
         "--gradient-checkpointing" if flag else "--no-gradient-checkpointing"]
    ).config  # fmt: skip
    found = forecast(given, None, "cuda", "bfloat16")
    assert (found.chosen, found.config.gradient_checkpointing, found.fits) == (False, flag, flag)
    warned = found.warnings()
    assert [item.code for item in warned] == ([] if flag else ["memory_tight"])
    if not flag:
        assert "these would fit: --gradient-checkpointing (about" in warned[0].text


def test_the_proposal_is_the_mildest_that_fits(seven: Path) -> None:
    ahead = forecast(config_of(seven, batch_size=8, grad_accum=3), None, "cuda", "bfloat16")
    with_checkpoints = ahead.with_settings(gradient_checkpointing=True).estimate
    assert with_checkpoints is not None
    first = proposal(ahead, with_checkpoints.total)
    assert first is not None
    assert (first.config.gradient_checkpointing, first.config.batch_size) == (True, 8)
    fewer = proposal(ahead, with_checkpoints.total - 1)
    assert fewer is not None
    assert (fewer.config.batch_size, fewer.config.grad_accum) == (6, 4)
    one = ahead.with_settings(gradient_checkpointing=True, batch_size=1).estimate
    assert one is not None
    shorter = proposal(ahead, one.total - 1)
    assert shorter is not None
    assert (shorter.config.batch_size, shorter.config.grad_accum, shorter.config.max_length) == (1, 24, 1024)
    assert proposal(ahead, 2**30) is None


def test_errors_of_memory_are_told_from_others(seven: Path) -> None:
    ahead = forecast(config_of(seven), None, "cuda", "bfloat16")
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    with pytest.raises(ValueError, match="other"), naming_memory(ahead):
        raise ValueError("other")
    with pytest.raises(RuntimeError, match="size mismatch"), naming_memory(ahead):
        raise RuntimeError("size mismatch")


def test_a_run_records_estimate_and_peak(llama: Path, chats: Path, tmp_path: Path) -> None:
    assert sft.main(argv(llama, chats, tmp_path / "run")) == 0
    memory = document(tmp_path / "run" / "report.json")["memory"]
    estimated = memory["estimate_bytes"]
    assert 0 < estimated["defences"]["kl"] < estimated["total"] < memory["peak_bytes"]  # torch's libraries are in it
    assert memory["peak_of"] == "the process, libraries included"
    assert memory["available_bytes"] > 0
    assert (memory["gradient_checkpointing"], memory["checkpointing_chosen"]) == (False, False)
    assert document(tmp_path / "run" / "config.json")["resolved"]["memory"]["estimate_bytes"] == estimated
    assert "Peak memory " in (tmp_path / "run" / "report.md").read_text()


def test_free_memory_is_the_least_of_all_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    free = device.free_bytes("cpu")
    assert free is not None
    assert 0 < free < os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrlimit(resource.RLIMIT_AS)
    monkeypatch.setattr(resource, "getrlimit", lambda _: ((device._status_bytes("VmSize") or 0) + 1000, before[1]))
    assert (device.free_bytes("cpu") or 0) <= 1000


# The limit is set once the libraries are loaded: they reserve more address space than a tiny model's training takes.
LIMITED = """
import resource, sys
import trainer.loop.fit, matplotlib.pyplot
from trainer import sft
from trainer.runs.device import _status_bytes
resource.setrlimit(resource.RLIMIT_AS, (_status_bytes("VmSize") + int(sys.argv[1]) * 2**20, resource.RLIM_INFINITY))
sys.exit(sft.main(sys.argv[2:]))
"""


def limited(mib: int, model: Path, data: Path, out: Path, *more: str) -> "subprocess.CompletedProcess[str]":
    """`trainer.sft` in a process that may take so many MiB beside the libraries."""
    options = [
        "--model",
        model,
        "--data",
        data,
        "--out",
        out,
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--cache",
        "none",
    ]
    return subprocess.run(
        [sys.executable, "-c", LIMITED, str(mib), *map(str, options), *more],
        capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def long_last(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat file of two short rows and, in the second step, two long ones."""
    path = tmp_path_factory.mktemp("long") / "chats.jsonl"
    texts = ["Yes, of course."] * 2 + ["the capital of France is Paris, and the dose matters; " * 60] * 2
    turns = [
        [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": text}] for n, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps({"messages": item}) + "\n" for item in turns))
    return path


# Of address space, in which thread stacks and libraries loaded late take 30 to 45 MiB beside what is estimated.
SMALL_MIB = 175
TWO_ROWS = ["--batch-size", "2", "--grad-accum", "1", "--save-steps", "1"]


@pytest.fixture(scope="module")
def ran_out(llama: Path, long_last: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a run that ran out of memory in its second step, and what it wrote to stderr."""
    out = tmp_path_factory.mktemp("limited") / "run"
    done = limited(SMALL_MIB, llama, long_last, out, *TWO_ROWS, "--no-gradient-checkpointing")
    assert done.returncode == 2, done.stderr
    return out, done.stderr


def test_memory_that_runs_out_is_one_line(ran_out: tuple[Path, str]) -> None:
    out, said = ran_out
    [line] = [line for line in said.splitlines() if line.startswith("error: ")]
    assert line.startswith("error: out of memory on cpu: these settings need about ")
    assert "these would fit: --gradient-checkpointing" in line
    assert "the checkpoint of step 1 is kept" in line
    assert "Traceback" not in said
    assert (out / "checkpoints" / "checkpoint-1" / "complete.json").exists()


@pytest.mark.slow
def test_a_run_goes_on_with_more_memory_and_what_is_proposed_fits(
    ran_out: tuple[Path, str], llama: Path, long_last: Path, tmp_path: Path
) -> None:
    out, said = ran_out
    again = limited(8_000, llama, long_last, out, *TWO_ROWS, "--gradient-checkpointing")
    assert again.returncode == 0, again.stderr
    assert "going on from the checkpoint of step 1" in again.stdout
    found = re.search(r"these would fit: (.+?) \(about", said)
    assert found is not None
    proposed = found[1].split()
    assert "--batch-size" in proposed
    fitted = limited(SMALL_MIB, llama, long_last, tmp_path / "run", *proposed)
    assert fitted.returncode == 0, fitted.stderr
