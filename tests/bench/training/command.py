"""`python -m tests.bench training`: what this trainer costs beside plain TRL, in interleaved repeats."""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import orjson

from curator.console import run_command, say, say_json
from curator.errors import BadInputError
from curator.scoring.identity import check_model_dir, weights_sha256
from tests.bench.training.data import CLOCKS, Sizes
from tests.bench.training.page import extra_in_plain_steps, lines_of, page
from tests.bench.training.prepare import Runs, medians, preparation_runs
from tests.bench.training.steps import (
    PLAIN,
    REFERENCE,
    VARIANTS,
    peak_mib,
    peaks,
    step_times,
)
from trainer.runs.folder import write_json
from trainer.runs.page import shown_command

PARTS = ("steps", "memory", "preparation")

DESCRIPTION = """\
Measures a training step with and without each defence against plain TRL SFT with the same LoRA, the reference forward
alone, the peak memory of plain SFT and of KL (a process each), and the time from a chat file to rows ready to train.
Conversations are made from a seed. Times are medians; variants take turns in each repeat. TRL prepares rows in one
process, as it does by default, with loss on the answers alone; its tokens and labels of the first rows are checked
against ours."""

EPILOG = """\
examples:
  python -m tests.bench training --model MODEL_DIR --json
  python -m tests.bench training --model MODEL_DIR --steps 3 --repeats 2 --batch-size 2 --rows 2000 --only none,kl
  python -m tests.bench training --model MODEL_DIR --parts preparation --rows 100000 --repeats 1 --keep FILE

Weights are bfloat16 where the hardware multiplies it natively, else float32; --dtype names one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see trainer.sft
    return run_command(lambda given: _run(given, arguments), args, stopped="stopped")


def _run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    sizes = Sizes(**{field.name: getattr(args, field.name) for field in fields(Sizes)})
    names = args.only or tuple(VARIANTS)
    check_model_dir(args.model)
    _check_names(names, args.parts)
    with tempfile.TemporaryDirectory() as work:
        if args.peak_of:
            say_json({"peak_mib": peak_mib(args.model, args.peak_of, sizes, Path(work))})
            return 0
        result = measure(args.model, names, sizes, Path(work), args.parts, args.keep)
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(page(result, shown_command("tests.bench training", arguments)), encoding="utf-8")
    if args.json:
        say_json(result)
    else:
        for line in lines_of(result):
            say(line)
    return 0


def measure(
    model: Path, names: Sequence[str], sizes: Sizes, work: Path, parts: Sequence[str] = PARTS, keep: Path | None = None
) -> dict[str, Any]:
    """Seconds per step of each variant, memory in MiB, data preparation in seconds, and what they were measured on.

    Parts that `keep` holds are taken from it, with their sizes; each further one is added as soon as it is measured.
    Raises BadInputError when what it holds was measured with another model.
    """
    result = _kept(keep, model)
    for part in parts:
        if part in result["parts"] or (part == "preparation" and not sizes.rows):
            continue
        if part == "steps":
            before = _runs_before(result, sizes)
            steps = step_times(model, names, sizes, work, before, lambda: _save(keep, result))
            result["step_s"] = steps
            result["step_ratio"] = {name: steps[name] / steps[PLAIN] for name in steps if name != REFERENCE}
            result["extra_over_reference_in_plain_steps"] = extra_in_plain_steps(steps)
        elif part == "memory":
            result["peak_mib"] = peaks(model, [name for name in ("kl", "kl+ldifs") if name in names], sizes)
        else:
            runs = preparation_runs(
                model, sizes, work, _preparations_before(result, sizes), lambda: _save(keep, result)
            )
            result["preparation_s"] = medians(runs, sizes.clock)
            result["preparation_cpu_s"] = medians(runs, "cpu")
        result["parts"][part] = {"sizes": asdict(sizes), "machine": _machine(sizes)}
        _save(keep, result)
    return result


def _save(keep: Path | None, result: dict[str, Any]) -> None:
    if keep is not None:
        write_json(keep, result)


def _runs_before(result: dict[str, Any], sizes: Sizes) -> dict[str, list[list[float]]]:
    """The steps' runs of a bench that was stopped, unless their sizes differ; kept in `result` as they are added to."""
    shape = {key: value for key, value in asdict(sizes).items() if key not in ("repeats", "rows")}
    if result.get("steps_of") != shape:
        result["steps_of"], result["step_runs"] = shape, {}
    runs: dict[str, list[list[float]]] = result["step_runs"]
    return runs


def _preparations_before(result: dict[str, Any], sizes: Sizes) -> Runs:
    """The same of data preparation."""
    shape = {"rows": sizes.rows, "words": sizes.words}
    if result.get("preparations_of") != shape:
        result["preparations_of"], result["preparation_runs"] = shape, {}
    runs: Runs = result["preparation_runs"]
    return runs


def _kept(keep: Path | None, model: Path) -> dict[str, Any]:
    weights = weights_sha256(model)
    if keep is None or not keep.exists():
        return {"weights_sha256": weights, "parts": {}}
    before: dict[str, Any] = orjson.loads(keep.read_bytes())
    if before.get("weights_sha256") != weights:
        raise BadInputError(f"{keep} was measured with another model: choose another --keep")
    return before


def _machine(sizes: Sizes) -> dict[str, Any]:
    from curator.scoring.engines.torch_model import resolve_device, resolve_dtype
    from trainer.runs.folder import environment
    from trainer.runs.machine import describe

    device = resolve_device("auto")
    packages = environment()["packages"]
    return describe(device, resolve_dtype(sizes.dtype, device)) | {
        "versions": {name: packages[name] for name in ("torch", "transformers", "trl", "peft")}
    }


def _check_names(names: Sequence[str], parts: Sequence[str]) -> None:
    for asked, known, what in ((names, tuple(VARIANTS), "variant"), (parts, PARTS, "part")):
        unknown = sorted(set(asked) - set(known))
        if unknown:
            raise BadInputError(f"no {what} {', '.join(unknown)}; there are {', '.join(known)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench training", description=DESCRIPTION, epilog=EPILOG,
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
    parser.add_argument(
        "--parts", type=lambda text: tuple(text.split(",")), default=PARTS, metavar="NAMES",
        help=f"comma-separated parts to measure (default: {','.join(PARTS)})",
    )  # fmt: skip
    parser.add_argument(
        "--keep", type=Path, metavar="FILE",
        help="JSON file of finished parts: those in it are not measured again, new ones are added",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the page here as well")
    parser.add_argument("--peak-of", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    return parser
