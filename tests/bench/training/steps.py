"""Training steps of each variant in interleaved repeats, the reference forward alone, and peak memory."""

import random
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from curator.console import Progress
from tests.bench.training.data import (
    CLOCKS,
    Sizes,
    bench_config,
    write_chats,
)
from trainer.runs.device import peak_rss_bytes

VARIANTS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "kl": [{"name": "kl"}],
    "ldifs": [{"name": "ldifs"}],
    "kl+ldifs": [{"name": "kl"}, {"name": "ldifs"}],
    "treft": [{"name": "treft"}],
    "steering": [{"name": "steering"}],  # its vectors are made here
    "gating": [{"name": "gating"}],
}
PLAIN = "plain TRL"
REFERENCE = "reference forward"

Runs = dict[str, list[list[float]]]  # by variant and run: seconds of each step


def step_times(
    model: Path, names: Sequence[str], sizes: Sizes, work: Path, runs: Runs, note: Callable[[], None]
) -> dict[str, float]:
    """Median seconds of an optimiser step (the first of each run left out), and of the reference forward.

    `runs` holds what was measured before and is added to; `note` is called after each run, to keep it.
    """
    rows, variants = _rows(model, sizes, work), (PLAIN, *names, REFERENCE)
    with Progress(sizes.repeats * len(variants), "runs", "steps") as progress:
        for repeat in range(sizes.repeats):
            order = list(variants)
            random.Random(repeat).shuffle(order)
            for name in order:
                if len(runs.setdefault(name, [])) <= repeat:
                    runs[name].append(_run(model, name, rows, sizes, work))
                    note()
                progress.advance(run=name)
    return {name: statistics.median(chain.from_iterable(runs[name])) for name in variants}


def peaks(model: Path, names: Sequence[str], sizes: Sizes) -> dict[str, float]:
    """Peak memory in MiB of plain SFT and of `names`, a process each."""
    return {name: _peak_apart(model, name, sizes) for name in (PLAIN, *names)}


def _run(model: Path, name: str, rows: Any, sizes: Sizes, work: Path) -> list[float]:
    """Seconds of each step but the first."""
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(sizes.threads)
    if name == REFERENCE:
        return _reference_seconds(model, rows, sizes)

    class Clock(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.marks: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.marks.append(CLOCKS[sizes.clock]())

    clock = Clock()
    trainer = _trainer(model, name, rows, sizes, work)
    trainer.add_callback(clock)
    trainer.train()
    return [after - before for before, after in zip(clock.marks, clock.marks[1:], strict=False)]


def _trainer(model: Path, name: str, rows: Any, sizes: Sizes, work: Path) -> Any:
    import transformers
    from trl import SFTTrainer

    from trainer.data.collate import Collator
    from trainer.data.order import OrderCheck
    from trainer.loop.fit import load, quiet
    from trainer.loop.trainer import BallastTrainer, sft_config

    variants = [] if name == PLAIN else VARIANTS[name]
    settings = [_with_vectors(item, model, work) if item["name"] == "steering" else item for item in variants]
    config = bench_config(model, work, sizes.dtype, defences=settings)
    with quiet():
        ready = load(config)
        options = sft_config(
            str(work / "trl"), max_steps=sizes.steps + 1, per_device_train_batch_size=sizes.batch_size,
            gradient_checkpointing=False, use_cpu=config.device == "cpu", learning_rate=1e-4,
        )  # fmt: skip
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
        common = {"model": ready.model, "args": options, "processing_class": tokenizer}
        if name == PLAIN:
            dataset = rows.dataset().with_format(None).remove_columns(["row", "safe", "token_classes"])
            plain = SFTTrainer(**common, train_dataset=dataset)
            plain.remove_callback(transformers.PrinterCallback)  # it writes to stdout
            return plain
        return BallastTrainer(
            **common, train_dataset=rows.dataset(), data_collator=Collator(tokenizer.pad_token_id or 0),
            defences=ready.defences, order=OrderCheck(len(rows.input_ids)),
        )  # fmt: skip


def _reference_seconds(model: Path, rows: Any, sizes: Sizes) -> list[float]:
    """Seconds of the decoder's forward with the adapter off, as every defence that compares needs it."""
    from trainer.data.collate import Collator
    from trainer.defenses.reference import reference_state
    from trainer.loop.fit import load, quiet

    with quiet():
        adapted = load(bench_config(model, Path(), sizes.dtype)).model
    decoder, columns, seconds = adapted.get_base_model().base_model, rows.table().to_pylist(), []
    for step in range(sizes.steps + 1):
        batch = Collator(0)(columns[step * sizes.batch_size : (step + 1) * sizes.batch_size])
        inputs = {name: batch[name].to(adapted.device) for name in ("input_ids", "attention_mask")}
        start = CLOCKS[sizes.clock]()
        with reference_state(adapted):
            decoder(**inputs, use_cache=False).last_hidden_state.sum().item()
        seconds.append(CLOCKS[sizes.clock]() - start)
    return seconds[1:]


def _with_vectors(item: dict[str, Any], model: Path, work: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig

    text = AutoConfig.from_pretrained(model, local_files_only=True, trust_remote_code=False).get_text_config()
    vectors = torch.randn(text.num_hidden_layers + 1, text.hidden_size, generator=torch.Generator().manual_seed(0))
    save_file({"vector": vectors / vectors.norm(dim=1, keepdim=True)}, work / "vectors.safetensors")
    return item | {"vectors": work / "vectors.safetensors"}


def _rows(model: Path, sizes: Sizes, work: Path) -> Any:
    """As many rows as the steps use, with token classes, since a defence may want them."""
    from trainer.data.inputs import read_inputs

    n_rows = sizes.batch_size * (sizes.steps + 1)
    data = write_chats(work / "steps.jsonl", n_rows, sizes.words)
    config = bench_config(model, work, sizes.dtype, data=data, defences=[{"name": "treft"}])
    return read_inputs(config, work, "", None).prepared


def peak_mib(model: Path, name: str, sizes: Sizes, work: Path) -> float:
    """Peak memory of this process after one run: resident on a CPU, allocated on a GPU."""
    import torch

    _run(model, name, _rows(model, sizes, work), sizes, work)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return peak_rss_bytes() / 2**20


def _peak_apart(model: Path, name: str, sizes: Sizes) -> float:
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in vars(sizes).items()]
    command = [sys.executable, "-m", "tests.bench", "training", "--model", str(model), "--peak-of", name, *flags]
    done = subprocess.run(command, capture_output=True, check=True)
    return float(orjson.loads(done.stdout)["peak_mib"])
