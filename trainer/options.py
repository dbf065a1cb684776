"""The command line of `python -m trainer.sft`, as a TrainConfig."""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator.errors import BadInputError
from trainer.config import ALL_LINEAR, LoraSettings, TrainConfig, parse_config
from trainer.defence_options import add_defence_options, defence_documents
from trainer.monitor.settings import add_monitor_options, monitor_document
from trainer.runfolder import Resume
from trainer.runoptions import add_run_options, resume_of

DESCRIPTION = """\
Fine-tunes a LoRA adapter on a mix, in the mix's own order, or on any chat file.

The rows are verified against the mix's manifest before the first step, their order while training. Only response
tokens are trained. Everything about the run goes into one folder; the same run again is skipped."""

EPILOG = """\
examples:
  # a mix of the service, with KL against the model before training
  python -m trainer.sft --model MODEL_DIR --mix-id ID --api-url http://127.0.0.1:8765 --kl 0.1 --out runs/safe

  # a mix of a local store, two epochs
  python -m trainer.sft --model MODEL_DIR --mix-id ID --store ./store --epochs 2 --out runs/two

  # a plain fine-tune of a chat file (JSON Lines, JSON or Parquet), 50 steps at most
  python -m trainer.sft --model MODEL_DIR --data chats.jsonl --max-steps 50 --out runs/plain

the run folder: config.json  metrics.jsonl  report.json  report.md  loss.png  adapter/
Exit codes: 0 done, 2 bad input (one line says why), 130 stopped by Ctrl-C (adapter/ holds what was learnt)."""


@dataclass(frozen=True)
class Invocation:
    """A parsed command line; the key stays out of the configuration, which is written to disk."""

    config: TrainConfig
    api_key: str | None
    overwrite: bool
    json: bool
    resume: Resume | None = None


def parse_arguments(argv: list[str]) -> Invocation:
    """The configuration of a command line; raises BadInputError naming every value out of range."""
    parser = _parser()
    args = parser.parse_args(argv)
    config = parse_config(_document(args))
    api_key = args.api_key or os.environ.get("BALLAST_API_KEY") or None
    return Invocation(config, api_key, args.overwrite, args.json, resume_of(args.resume, parser))


def _document(args: argparse.Namespace) -> dict[str, Any]:
    given = {key: value for key, value in vars(args).items() if value is not None}
    document = training_document(given) | {"monitor": monitor_document(given)}
    if "mix_id" in document and "api_url" not in document and "store" not in document:
        document["store"] = os.environ.get("BALLAST_STORE", "./store")
    if "safelora_tau" in given and "safelora" not in given:
        raise BadInputError("--safelora-tau goes with --safelora, which was not given")
    if "safelora" in given:
        tau = {"tau": given["safelora_tau"]} if "safelora_tau" in given else {}
        document["safelora"] = {"base": given["safelora"], **tau}
    defences = defence_documents(given)
    if defences:
        document["defences"] = defences
    return document


def training_document(given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a TrainConfig among options that were given, the adapter's as its own document."""
    document = {key: given[key] for key in TrainConfig.model_fields if key in given}
    lora = {key: given[f"lora_{key}"] for key in LoraSettings.model_fields if f"lora_{key}" in given}
    return document | ({"lora": lora} if lora else {})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m trainer.sft",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        # Options that are not given stay out of the document, so that defaults stand in one place.
        argument_default=None,
    )
    _add_sources(parser)
    add_training_options(parser)
    add_adapter_options(parser)
    add_defence_options(parser)
    add_monitor_options(parser)
    _add_after(parser)
    add_run_options(parser)
    output = parser.add_argument_group("output")
    output.add_argument("--out", required=True, type=Path, metavar="DIR", help="run folder, for example runs/NAME")
    output.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    output.add_argument("--json", action="store_true", help="print report.json on stdout at the end, nothing else")
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and rows")
    group.add_argument("--model", required=True, type=Path, metavar="DIR", help="Hugging Face model folder to adapt")
    group.add_argument("--mix-id", metavar="ID", help="train on this mix")
    group.add_argument("--api-url", metavar="URL", help="service that the mix is fetched from")
    group.add_argument("--api-key", metavar="KEY", help="its key (default: $BALLAST_API_KEY); never written to disk")
    group.add_argument("--store", metavar="DIR", help="or: store it lies in (default: $BALLAST_STORE, else ./store)")
    group.add_argument("--tenant", metavar="NAME", help=f"tenant in the store (default: {_default('tenant')})")
    group.add_argument("--data", type=Path, metavar="FILE", help="or: train on a chat file, in its order")
    group.add_argument(
        "--corpus-format", choices=("jsonl", "json", "parquet"), help="format of --data (default: detected)"
    )
    group.add_argument(
        "--strict", action="store_true", default=None, help="refuse --data with any bad row instead of leaving it out"
    )


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Epochs, batch, rates, length, seed, dtype and device."""
    group = parser.add_argument_group("training (defaults are the published recipe's)")
    number = _number_adder(group)
    number("--epochs", int, "passes over the rows")
    number("--batch-size", int, "rows in one forward pass")
    number("--grad-accum", int, "forward passes in one step; effective batch = batch size x this")
    number("--lr", float, "peak learning rate of AdamW, linear to zero")
    number("--warmup-steps", int, "steps of linear warm-up; the first step has rate 0")
    number("--weight-decay", float, "AdamW weight decay")
    number("--max-grad-norm", float, "gradient norm is clipped to this")
    number("--max-length", int, "tokens a row is cut to")
    number("--seed", int, "seed of the adapter's start and of dropout")
    group.add_argument(
        "--max-steps", "--steps", type=int, metavar="N", help="stop after N steps even if epochs are left"
    )
    group.add_argument("--mask-rule", choices=("all", "last"), help="train every assistant turn (default) or the last")
    group.add_argument(
        "--allow-masked-rows", action="store_true", default=None,
        help="keep rows without any trained token in place instead of refusing them",
    )  # fmt: skip
    group.add_argument(
        "--dtype", choices=("auto", "float32", "bfloat16"),
        help="weights of the frozen model (default auto: bfloat16 where the hardware has it)",
    )  # fmt: skip
    group.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), help="default auto; CUDA_VISIBLE_DEVICES chooses among several"
    )
    group.add_argument(
        "--gradient-checkpointing", action="store_true", default=None, help="less memory, about a third slower"
    )


def add_adapter_options(parser: argparse.ArgumentParser) -> None:
    """Rank, scale, dropout and targets of the adapter."""
    group = parser.add_argument_group("adapter")
    lora = LoraSettings()
    group.add_argument("--lora-r", type=int, metavar="N", help=f"rank (default: {lora.r})")
    group.add_argument("--lora-alpha", type=float, metavar="A", help=f"scale (default: {lora.alpha:g})")
    group.add_argument("--lora-dropout", type=float, metavar="P", help=f"dropout (default: {lora.dropout:g})")
    group.add_argument(
        "--lora-targets", type=lambda text: tuple(text.split(",")), metavar="NAMES",
        help=f"comma-separated layer names, or {ALL_LINEAR} (default: {','.join(lora.targets)})",
    )  # fmt: skip
    group.add_argument(
        "--start-adapter", type=Path, metavar="DIR",
        help="train this adapter on instead of a fresh one, with its own rank and targets; defences still compare with "
        "the model without any adapter",
    )  # fmt: skip
    group.add_argument(
        "--no-rslora", dest="lora_rslora", action="store_false", default=None,
        help="scale by alpha / r instead of alpha / sqrt(r)",
    )  # fmt: skip


def _add_after(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("after training")
    group.add_argument(
        "--safelora", type=Path, metavar="BASE_DIR",
        help="also write safelora/: the adapter projected onto the difference between --model and this model, the one "
        "before alignment (python -m trainer.safelora)",
    )  # fmt: skip
    group.add_argument(
        "--safelora-tau", type=float, metavar="X", help="project modules with a cosine below this (default: 0.3)"
    )


def _number_adder(group: Any) -> Any:
    def add(flag: str, kind: type, text: str) -> None:
        shown = _default(flag.lstrip("-").replace("-", "_"))
        group.add_argument(flag, type=kind, metavar="N", help=f"{text} (default: {shown:g})")

    return add


def _default(name: str) -> Any:
    return TrainConfig.model_fields[name].default
