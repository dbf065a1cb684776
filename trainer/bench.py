"""`python -m trainer.bench`: what this trainer costs beside plain TRL, in one process and in interleaved repeats."""

import argparse
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import orjson

from curator.commands import report_error, say_json
from curator.errors import BadInputError, BallastError
from curator.progress import say
from curator.scoring.identity import check_model_dir
from trainer.bench_data import CLOCKS, Sizes, bench_config, preparation_times, write_chats

DESCRIPTION = """\
Measures a training step with and without each defence against plain TRL SFT with the same LoRA, the reference forward
alone, the peak memory of plain SFT and of KL (a process each), and the time from a chat file to rows ready to train.
Conversations are made from a seed. Times are medians; variants take turns in each repeat."""

EPILOG = """\
examples:
  python -m trainer.bench --model MODEL_DIR --json
  python -m trainer.bench --model MODEL_DIR --steps 3 --repeats 2 --batch-size 2 --rows 2000 --only none,kl

Weights are bfloat16 where the hardware multiplies it natively, else float32; --dtype names one."""

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


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input."""
    args = _parser().parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see trainer.sft
    sizes = Sizes(**{field.name: getattr(args, field.name) for field in fields(Sizes)})
    names = args.only or tuple(VARIANTS)
    try:
        check_model_dir(args.model)
        unknown = sorted(set(names) - set(VARIANTS))
        if unknown:
            raise BadInputError(f"no variant {', '.join(unknown)}; there are {', '.join(VARIANTS)}")
        with tempfile.TemporaryDirectory() as work:
            if args.peak_of:
                say_json({"peak_mib": peak_mib(args.model, args.peak_of, sizes, Path(work))})
                return 0
            result = measure(args.model, names, sizes, Path(work))
    except BallastError as error:
        report_error(error, as_json=args.json)
        return 2
    if args.json:
        say_json(result)
    else:
        for line in table(result):
            say(line)
    return 0


def measure(model: Path, names: Sequence[str], sizes: Sizes, work: Path) -> dict[str, Any]:
    """Seconds per step of each variant, memory in MiB, data preparation in seconds, and what they were measured on."""
    from trainer.runfolder import environment

    steps = step_times(model, names, sizes, work)
    result: dict[str, Any] = {
        "sizes": vars(sizes),
        "environment": environment(),
        "cores": os.cpu_count(),
        "step_s": steps,
        "step_ratio": {name: steps[name] / steps[PLAIN] for name in steps if name != "reference forward"},
        "extra_over_reference_in_plain_steps": {
            name: (steps[name] - steps[PLAIN] - steps["reference forward"]) / steps[PLAIN]
            for name in ("kl", "ldifs", "kl+ldifs")
            if name in steps
        },
        "peak_mib": {name: _peak_apart(model, name, sizes) for name in (PLAIN, "kl")} if "kl" in names else {},
        "preparation_s": preparation_times(model, sizes, work) if sizes.rows else {},
    }
    return result


def step_times(model: Path, names: Sequence[str], sizes: Sizes, work: Path) -> dict[str, float]:
    """Median seconds of an optimiser step (the first of each run left out), and of the reference forward."""
    rows = _rows(model, sizes, work)
    seconds: dict[str, list[float]] = {name: [] for name in (PLAIN, *names, "reference forward")}
    for repeat in range(sizes.repeats):
        order = list(seconds)
        random.Random(repeat).shuffle(order)
        for name in order:
            seconds[name] += _run(model, name, rows, sizes, work)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _run(model: Path, name: str, rows: Any, sizes: Sizes, work: Path) -> list[float]:
    """Seconds of each step but the first."""
    import torch
    from transformers import TrainerCallback

    torch.set_num_threads(sizes.threads)
    if name == "reference forward":
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

    from trainer.batches import Collator, OrderCheck
    from trainer.fit import load, quiet
    from trainer.loop import BallastTrainer, sft_config

    variants = [] if name == PLAIN else VARIANTS[name]
    settings = [_with_vectors(item, model, work) if item["name"] == "steering" else item for item in variants]
    config = bench_config(model, work, sizes.dtype, defences=settings)
    with quiet():
        ready = load(config)
        options = sft_config(
            str(work / "trl"), max_steps=sizes.steps + 1, per_device_train_batch_size=sizes.batch_size,
            gradient_checkpointing=False, use_cpu=config.device == "cpu", learning_rate=1e-4,
        )  # fmt: skip
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True)
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
    import torch

    from trainer.batches import Collator
    from trainer.fit import load

    lm = load(bench_config(model, Path(), sizes.dtype)).model.get_base_model()
    columns = rows.table().to_pylist()
    seconds = []
    for step in range(sizes.steps + 1):
        batch = Collator(0)(columns[step * sizes.batch_size : (step + 1) * sizes.batch_size])
        start = CLOCKS[sizes.clock]()
        with torch.no_grad():
            lm.base_model(
                input_ids=batch["input_ids"].to(lm.device), attention_mask=batch["attention_mask"].to(lm.device)
            ).last_hidden_state.sum().item()
        seconds.append(CLOCKS[sizes.clock]() - start)
    return seconds[1:]


def _with_vectors(item: dict[str, Any], model: Path, work: Path) -> dict[str, Any]:
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig

    text = AutoConfig.from_pretrained(model, local_files_only=True).get_text_config()
    vectors = torch.randn(text.num_hidden_layers + 1, text.hidden_size, generator=torch.Generator().manual_seed(0))
    save_file({"vector": vectors / vectors.norm(dim=1, keepdim=True)}, work / "vectors.safetensors")
    return item | {"vectors": work / "vectors.safetensors"}


def _rows(model: Path, sizes: Sizes, work: Path) -> Any:
    """As many rows as the steps use, with token classes, since a defence may want them."""
    from trainer.inputs import read_inputs

    n_rows = sizes.batch_size * (sizes.steps + 1)
    data = write_chats(work / "steps.jsonl", n_rows, sizes.words)
    config = bench_config(model, work, sizes.dtype, data=data, defences=[{"name": "treft"}])
    return read_inputs(config, work, "", None).prepared


def peak_mib(model: Path, name: str, sizes: Sizes, work: Path) -> float:
    """Peak memory of this process after one run: resident on a CPU, allocated on a GPU."""
    import resource

    import torch

    _run(model, name, _rows(model, sizes, work), sizes, work)
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _peak_apart(model: Path, name: str, sizes: Sizes) -> float:
    import subprocess

    flags = [f"--{key.replace('_', '-')}={value}" for key, value in vars(sizes).items()]
    command = [sys.executable, "-m", "trainer.bench", "--model", str(model), "--peak-of", name, *flags]
    done = subprocess.run(command, capture_output=True, check=True)
    return float(orjson.loads(done.stdout)["peak_mib"])


def table(result: dict[str, Any]) -> list[str]:
    """The result as lines for people."""
    lines = ["| variant | s per step | against plain TRL |", "|---|---|---|"]
    ratios = result["step_ratio"]
    lines += [
        f"| {name} | {value:.3f} | {f'{ratios[name]:.3f}x' if name in ratios else ''} |"
        for name, value in result["step_s"].items()
    ]
    extra = result["extra_over_reference_in_plain_steps"].items()
    lines += ["", *(f"{name}: reference forward + {value:.2f} of a plain step" for name, value in extra)]
    lines += [f"peak memory, {name}: {value:,.0f} MiB" for name, value in result["peak_mib"].items()]
    n_rows = result["sizes"]["rows"]
    lines += [f"{n_rows:,} rows ready, {name}: {value:.2f} s" for name, value in result["preparation_s"].items()]
    return lines


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.bench", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--model", required=True, type=Path, metavar="DIR", help="Hugging Face model folder")
    for flag, default, text in (
        ("--steps", 5, "steps measured in each run, after one that is not"),
        ("--repeats", 3, "runs of each variant, interleaved"),
        ("--batch-size", 4, "rows in a step"),
        ("--rows", 10_000, "rows of the data preparation; 0 leaves it out"),
        ("--words", 40, "mean words in a turn"),
        ("--threads", 2, "threads of torch"),
    ):
        parser.add_argument(flag, type=int, default=default, metavar="N", help=f"{text} ({default})")
    parser.add_argument(
        "--only", type=lambda text: tuple(text.split(",")), metavar="NAMES",
        help=f"comma-separated variants (default: {','.join(VARIANTS)})",
    )  # fmt: skip
    parser.add_argument(
        "--clock", choices=tuple(CLOCKS), default="wall",
        help="cpu counts this process's own processor seconds, which other work on the machine disturbs less (wall)",
    )  # fmt: skip
    parser.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="weights of the frozen model (auto)"
    )
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser


if __name__ == "__main__":
    sys.exit(main())
