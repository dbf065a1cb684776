"""The command line of `python -m trainer.sft`: its options, and the TrainConfig that they give.

Options are rendered from TrainConfig and the settings inside it (trainer.config.flags). What belongs to the command
alone is declared here: the service's key, --resume, --overwrite, --json, and names of other trainers that are refused.
"""

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator.console import CommandParser, shorten_help
from curator.errors import BadInputError
from curator.recipe.document import parse_document, read_document
from curator.render.model_source import locate_model
from trainer.config import NO_CACHE, LoraSettings, SafeLoraSettings, TrainConfig, parse_config
from trainer.config.data import ReadOptions, RenderOptions
from trainer.config.defences import ALL_SETTINGS, DefenceBase, InoculationAdapterSettings
from trainer.config.flags import add_options, flag, given_settings, given_values
from trainer.config.monitor import MonitorSettings, ReserveSettings


@dataclass(frozen=True)
class Resume:
    """What `--resume` asks for: `step` None is the newest checkpoint."""

    step: int | None = None


def add_defence_options(parser: argparse.ArgumentParser) -> None:
    """One flag for every defence, which switches it on and takes its main setting (a weight, a file, an adapter), and
    one for a file that holds all of their settings."""
    group = parser.add_argument_group("defences (docs/defences.md says what each of them computes)")
    for settings in ALL_SETTINGS:
        name = defence_name(settings)
        if settings.main is None:
            group.add_argument(flag("", name), action="store_true", default=None, help=settings.switch)
        else:
            add_options(group, settings, (settings.main,), prefix=name, defaults={settings.main: None})
        for field in settings.model_fields.keys() - {"name", settings.main}:
            reason = f"put it into a file, as `{name}: {{{field}: ...}}`, and give that as --defenses"
            group.add_argument(flag(name, field), action=_Refuse, nargs=0, reason=reason, help=argparse.SUPPRESS)
    group.add_argument(
        "--defenses", metavar="FILE", type=Path,
        help="or a YAML or JSON file of defences with all their settings, such as `kl: {weight: 0.1, rows: safe}`",
    )  # fmt: skip


def defence_documents(given: dict[str, Any]) -> list[dict[str, Any]]:
    """The defences among parsed options and in the file that they name, as documents for TrainConfig.

    Raises BadInputError for a file that holds none or one at fault, and for a defence that both name.
    """
    found = defences_of_file(given["defenses"]) if "defenses" in given else {}
    adapter = found.get(defence_name(InoculationAdapterSettings), {})
    if isinstance(adapter.get("adapter"), str):
        adapter["adapter"] = locate_model(adapter["adapter"])
    for settings in ALL_SETTINGS:
        name = defence_name(settings)
        switched_on = {} if settings.main is None else given_values(given, settings, prefix=name)
        if name not in given and not switched_on:
            continue
        if name in found:
            raise BadInputError(f"{given['defenses']} has {name}, and so has {flag('', name)}: leave one of them out")
        parse_document(settings, {"name": name, **switched_on}, flag("", name))
        found[name] = switched_on
    return [{"name": name, **found[name]} for name in map(defence_name, ALL_SETTINGS) if name in found]


def defences_of_file(path: Path) -> dict[str, dict[str, Any]]:
    """What a file sets, by defence; `gating:` with nothing behind it takes the defaults.

    Raises MissingError without the file, BadInputError for one that holds no defence or one at fault.
    """
    document, known = read_document(path, "defenses"), {defence_name(settings): settings for settings in ALL_SETTINGS}
    if not isinstance(document, dict) or not document:
        raise BadInputError(f"{path} holds no defence: give settings by name, such as `kl: {{weight: 0.1}}`")
    for name, settings in document.items():
        if name not in known:
            raise BadInputError(f"{path}: there is no defence {name!r}; known are {', '.join(known)}")
        if not isinstance(settings, dict | None) or "name" in (settings or {}):
            raise BadInputError(f"{path}: {name} takes settings by name, such as `kl: {{weight: 0.1, rows: safe}}`")
        parse_document(known[name], {"name": name, **(settings or {})}, f"{path}: {name}")
    return {name: dict(settings or {}) for name, settings in document.items()}


def defence_name(settings: type[DefenceBase]) -> str:
    """The name that a defence's settings carry."""
    return str(settings.model_fields["name"].default)


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Checkpoints, resuming, render cache, trackers, other orders, full fine-tuning and 4-bit bases."""
    group = parser.add_argument_group("checkpoints, cache and trackers")
    add_options(group, TrainConfig, ("save_steps", "keep_checkpoints"))
    group.add_argument(
        "--resume", nargs="?", const="newest", metavar="STEP",
        help="go on from a checkpoint in --out, the newest or that of STEP, and fail if there is none; without this, "
        "an interrupted run goes on from its newest checkpoint if it has one",
    )  # fmt: skip
    add_options(group, TrainConfig, ("cache", "report_to"))
    group = parser.add_argument_group("what is trained, and in which order")
    add_options(group, TrainConfig, ("full", "four_bit", "reorder"))
    for name, reason in _REFUSED.items():
        group.add_argument(name, action=_Refuse, nargs=0, reason=reason, help=argparse.SUPPRESS)


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
    document = training_document(given)
    if "mix_id" in document and "api_url" not in document and "store" not in document:
        document["store"] = os.environ.get("BALLAST_STORE", "./store")
    document["monitor"] = given_settings(given, MonitorSettings, prefix="monitor", main="directions")
    document["reserve"] = given_settings(given, ReserveSettings, prefix="reserve", main="share")
    document["safelora"] = given_settings(given, SafeLoraSettings, prefix="safelora", main="base")
    document["defences"] = defence_documents(given)
    return document


def training_document(given: dict[str, Any]) -> dict[str, Any]:
    """The settings of a TrainConfig among options that were given, the adapter's as its own document."""
    lora = given_values(given, LoraSettings, prefix="lora")
    return given_values(given, TrainConfig) | ({"lora": lora} if lora else {})


# What most runs need; `--help-all` has the rest. A defence is switched on by the option of its name.
_SHOWN = (
    "--model", "--mix-id", "--api-url", "--store", "--data", "--epochs", "--batch-size", "--grad-accum", "--lr",
    "--max-length", "--seed", "--max-steps", "--dtype", "--gradient-checkpointing", "--lora-r",
    *(flag("", defence_name(settings)) for settings in ALL_SETTINGS), "--defenses", "--out", "--overwrite",
    "--json",
)  # fmt: skip


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
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
    monitor = parser.add_argument_group("trait-space monitor (docs/persona.md)")
    add_options(monitor, MonitorSettings, ("directions", "every", "alarm", "stop"), prefix="monitor")
    add_options(monitor, ReserveSettings, prefix="reserve")
    add_options(parser.add_argument_group("after training"), SafeLoraSettings, prefix="safelora")
    add_run_options(parser)
    output = parser.add_argument_group("output")
    add_options(output, TrainConfig, ("out",))
    output.add_argument("--overwrite", action="store_true", help="replace the run in --out")
    output.add_argument("--json", action="store_true", help="print report.json on stdout at the end, nothing else")
    shorten_help(parser, _SHOWN)
    return parser


def _add_sources(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model and rows")
    add_options(group, TrainConfig, ("model", "mix_id", "api_url"))
    group.add_argument("--api-key", metavar="KEY", help="its key (default: $BALLAST_API_KEY); never written to disk")
    add_options(group, TrainConfig, ("store", "tenant", "data", *ReadOptions.model_fields))


def add_training_options(parser: argparse.ArgumentParser) -> None:
    """Epochs, batch, rates, length, rendering, seed, dtype and device."""
    names = (
        "epochs", "batch_size", "grad_accum", "lr", "warmup_steps", "weight_decay", "max_grad_norm", "max_length",
        "seed", "max_steps", "mask_rule", "allow_masked_rows", *RenderOptions.model_fields, "dtype", "device",
        "gradient_checkpointing",
    )  # fmt: skip
    group = parser.add_argument_group("training (defaults are the published recipe's)")
    add_options(group, TrainConfig, names)


def add_adapter_options(parser: argparse.ArgumentParser) -> None:
    """Rank, scale, dropout and targets of the adapter."""
    group = parser.add_argument_group("adapter")
    add_options(group, LoraSettings, ("r", "alpha", "dropout", "targets"), prefix="lora")
    add_options(group, TrainConfig, ("start_adapter",))
    add_options(group, LoraSettings, ("rslora",), prefix="lora")
