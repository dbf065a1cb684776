"""The command line of `python -m trainer.sft`, as a TrainConfig.

Command-line flags of the defences, made from their settings: a field is described once, where it is declared.

The flag named like the defence switches it on and takes its main setting (a weight, or the vectors' file); every other
field is `--DEFENCE-FIELD`.

Options of `python -m trainer.sft` about how a run is kept, resumed, watched and spread; each described once.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from curator.errors import BadInputError
from trainer.config import (
    ALL_LINEAR,
    LoraSettings,
    TrainConfig,
    parse_config,
)
from trainer.config.defences import ALL_SETTINGS, SYNTAX, DefenceBase
from trainer.config.monitor import add_monitor_options, monitor_document

# What the flag named like the defence takes; None: nothing.
MAIN_FIELD: dict[str, str | None] = {
    "kl": "weight",
    "ldifs": "weight",
    "treft": "weight",
    "steering": "vectors",
    "gating": None,
}
_TITLES = {
    "kl": "add WEIGHT * KL against the model before training",
    "ldifs": "add WEIGHT * distance of normalised hidden states from those before training",
    "treft": "add WEIGHT * relative distance of keys and values at template tokens",
    "steering": "add persona vectors to the residual stream while training",
    "gating": "train gates on the attention outputs instead of the adapter",
}


@dataclass(frozen=True)
class Resume:
    """What `--resume` asks for: `step` None is the newest checkpoint."""

    step: int | None = None


def add_defence_options(parser: argparse.ArgumentParser) -> None:
    """A group of flags for every defence."""
    group = parser.add_argument_group("defences (docs/defences.md says what each of them computes)")
    for settings in ALL_SETTINGS:
        name = defence_name(settings)
        main = MAIN_FIELD[name]
        if main is None:
            group.add_argument(f"--{name}", action="store_true", default=None, help=_TITLES[name])
        else:
            group.add_argument(
                f"--{name}",
                metavar="FILE" if main == "vectors" else "WEIGHT",
                help=f"{_TITLES[name]}: {settings.model_fields[main].description}",
            )
        for field, info in other_fields(settings).items():
            group.add_argument(flag(name, field), metavar=_metavar(info), choices=_choices(info), help=_help(info))


def defence_documents(given: dict[str, Any]) -> list[dict[str, Any]]:
    """The defences of parsed arguments (those not given left out), as documents for TrainConfig.

    Raises BadInputError for a defence's option without the defence.
    """
    documents = []
    for settings in ALL_SETTINGS:
        name, main = defence_name(settings), MAIN_FIELD[defence_name(settings)]
        options = {field: given[key] for field in other_fields(settings) if (key := _key(name, field)) in given}
        if name not in given:
            if options:
                raise BadInputError(f"{flag(name, next(iter(options)))} goes with --{name}, which was not given")
            continue
        if "layers" in options:
            options["layers"] = [part for part in options["layers"].split(",") if part]
        documents.append({"name": name} | ({main: given[name]} if main else {}) | options)
    return documents


def defence_name(settings: type[DefenceBase]) -> str:
    """The name that a defence's settings carry."""
    return str(settings.model_fields["name"].default)


def other_fields(settings: type[DefenceBase]) -> dict[str, FieldInfo]:
    """The fields that have a flag of their own."""
    main = MAIN_FIELD[defence_name(settings)]
    names = [field for field in settings.model_fields if field not in ("name", "schedule", main)]
    return {field: settings.model_fields[field] for field in [*names, "schedule"]}


def flag(name: str, field: str) -> str:
    """`--kl-sample-share` for field `sample_share` of `kl`."""
    return f"--{name}-{field.replace('_', '-')}"


def _key(name: str, field: str) -> str:
    return f"{name}_{field}"


def _choices(info: FieldInfo) -> tuple[str, ...] | None:
    return get_args(info.annotation) if get_origin(info.annotation) is Literal else None


def _metavar(info: FieldInfo) -> str | None:
    if _choices(info) is not None:
        return None
    text = str(info.annotation)
    if "Schedule" in text:
        return SYNTAX
    if "tuple" in text:
        return "L,L"
    return "NAME" if "str" in text else "N" if "int" in text else "X"


def _help(info: FieldInfo) -> str:
    default = info.default
    if default is None or not isinstance(default, str | int | float):
        return f"{info.description}"
    return f"{info.description} (default: {default})"


NO_CACHE = "none"


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Checkpoints, resuming, render cache, trackers, other orders, full fine-tuning and 4-bit bases."""
    group = parser.add_argument_group("checkpoints, cache and trackers")
    group.add_argument(
        "--save-steps", type=int, metavar="N", help="write a checkpoint every N steps (default: only on Ctrl-C)"
    )
    group.add_argument("--keep-checkpoints", type=int, metavar="N", help="keep the newest N (default: 2)")
    group.add_argument(
        "--resume", nargs="?", const="newest", metavar="STEP",
        help="go on from a checkpoint in --out, the newest or that of STEP, and fail if there is none; without this, "
        "an interrupted run goes on from its newest checkpoint if it has one",
    )  # fmt: skip
    group.add_argument(
        "--cache", metavar="DIR",
        help=f"folder of rendered rows, shared by runs (default: .rendered beside --out); {NO_CACHE}: keep none",
    )  # fmt: skip
    group.add_argument(
        "--report-to", type=lambda text: tuple(text.split(",")), metavar="NAMES",
        help="send metrics to trackers that are installed, for example trackio or tensorboard",
    )  # fmt: skip
    group = parser.add_argument_group("what is trained, and in which order")
    group.add_argument(
        "--full", action="store_true", default=None,
        help="train every weight instead of an adapter; a defence that compares with the model before training then "
        "needs a second, frozen copy of it",
    )  # fmt: skip
    group.add_argument(
        "--four-bit", action="store_true", default=None,
        help="hold the frozen model in 4 bits (NF4); needs bitsandbytes",
    )  # fmt: skip
    group.add_argument(
        "--reorder", choices=("shuffle", "group_by_length"),
        help="give up the order of the rows, by name: shuffle every epoch, or put rows of like length together",
    )  # fmt: skip
    for flag, reason in _REFUSED.items():
        group.add_argument(flag, action=_Refuse, nargs=0, reason=reason, help=argparse.SUPPRESS)


def resume_of(value: str | None, parser: argparse.ArgumentParser) -> Resume | None:
    """What `--resume` asks for."""
    if value is None:
        return None
    if value == "newest":
        return Resume()
    if not value.isdigit():
        parser.error(f"--resume takes the step of a checkpoint, not {value!r}")
    return Resume(int(value))


def cache_folder(cache: Path | None, out: Path) -> Path | None:
    """Where rendered rows are kept; None for nowhere."""
    if cache is None:
        return out.parent / ".rendered"
    return None if str(cache) == NO_CACHE else cache


# Names that other trainers have: an error that says why is better than "unrecognized arguments".
_REFUSED = {
    "--packing": "packing puts several rows into one and so voids the order of a mix; it is not offered",
    "--group-by-length": "grouping rows by length voids the order of a mix: ask for it as --reorder group_by_length",
    "--shuffle": "shuffling voids the order of a mix: ask for it as --reorder shuffle",
}


class _Refuse(argparse.Action):
    def __init__(self, *, reason: str, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.reason = reason

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error(self.reason)


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
        "before alignment (python -m trainer.defenses.safelora)",
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
