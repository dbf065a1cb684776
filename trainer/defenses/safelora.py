"""`python -m trainer.defenses.safelora`: a trained adapter projected onto what alignment changed, as a new adapter."""

import argparse
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from curator.console import CommandParser, Progress, add_renamed, run_command, say, say_json
from curator.errors import BadInputError
from curator.render.model_source import MODEL_FORMS, model_option
from curator.scoring.identity import (
    adapter_sha256,
    check_adapter_dir,
    check_base,
    check_model_dir,
    weights_sha256,
)
from curator.store.filesystem import atomic_write
from trainer.runs.folder import MARKER, write_json
from trainer.runs.report import model_card, safelora_section
from trainer.runs.weights import ADAPTER_WEIGHTS, AdapterFile, WeightFiles

TAU = 0.3  # published (method.md, "Regularisers")
NOTE = "safelora.json"  # written last: its presence means that the folder is complete
FORMAT_VERSION = 1

DESCRIPTION = """\
Projects a trained LoRA adapter onto what alignment changed, module by module: where the cosine between the adapter's
change of a weight and its projection is below tau, the change is replaced by its projection. Needs two models of one
shape: the pretrained one before alignment (--base), and the aligned one that the adapter was
trained on (--aligned-model).
Writes a new adapter of the same rank and leaves the old one as it is. Reads weights a few rows at a time."""

EPILOG = """\
examples:
  python -m trainer.defenses.safelora --adapter RUN/adapter --base BASE_DIR --aligned-model CHAT_DIR --out RUN/safelora
  python -m trainer.defenses.safelora --adapter runs/NAME/adapter --base BASE_DIR --aligned-model CHAT_DIR --dry-run

safelora.json in the new folder has every module's cosine. `python -m trainer.sft --safelora BASE_DIR` does the same
after training. Exit codes: 0 done or done before, 2 bad input."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done or done before, 2 bad input."""
    args = _parser().parse_args(argv)
    return run_command(_run, args, stopped="stopped")


def _run(args: argparse.Namespace) -> int:
    if not args.dry_run and args.out is None:
        raise BadInputError("give --out for the new adapter, or --dry-run for the cosines alone")
    out = None if args.dry_run else args.out
    note = safelora(args.adapter, args.base, args.aligned_model, args.tau, out, overwrite=args.overwrite)
    if args.json:
        say_json(note)
        return 0
    for line in summary(note):
        say(line)
    if out is not None:
        say(f"adapter: {out}")
    return 0


def safelora(
    adapter: Path, base: Path, aligned: Path, tau: float, out: Path | None, *, overwrite: bool = False
) -> dict[str, Any]:
    """Project an adapter and write it to `out` (None: only look); returns what safelora.json holds.

    A folder that holds this very result is left as it is. Raises BadInputError when the three do not belong together,
    when the two models do not differ in any adapted module, or when `out` holds something else.
    """
    if not 0.0 <= tau <= 1.0:
        raise BadInputError(f"tau is {tau:g}; the cosines lie between 0 and 1, and so must tau (published: {TAU:g})")
    check_adapter_dir(adapter)
    check_shapes(base, aligned)
    check_base(adapter, aligned)
    identity = {
        "adapter_sha256": adapter_sha256(adapter),
        "base_weights_sha256": weights_sha256(base),
        "aligned_weights_sha256": weights_sha256(aligned),
        "tau": tau,
    }
    if out is not None and (before := _claim(out, identity, overwrite)) is not None:
        return before
    file = AdapterFile.read(adapter)
    note, tensors = _project(file, base, aligned, tau)
    note = {"format_version": FORMAT_VERSION, **identity, **note, "warnings": _warnings(file, note)}
    if out is not None:
        _write(adapter, out, tensors, note)
    return note


def check_shapes(base: Path, aligned: Path) -> None:
    """Raise BadInputError unless the base has every matrix of the aligned model in its shape, vocabulary aside.

    Reads headers and loads no torch, so that a training run can ask before it starts.
    """
    for folder in (base, aligned):
        check_model_dir(folder)
    n_vocab = orjson.loads((aligned / "config.json").read_bytes()).get("vocab_size")
    with WeightFiles(base, headers_only=True) as old, WeightFiles(aligned, headers_only=True) as new:
        for name in new.names():
            shape = new.shape(name)
            if len(shape) != 2 or shape[0] == n_vocab or not name.endswith(".weight"):
                continue
            found = old.shape(old.name_of(name.removesuffix(".weight")))
            if found != shape:
                raise BadInputError(
                    f"safelora: {name} has shape {shape} in {aligned} and {found} in {base}: that is not the model "
                    "which this one was aligned from"
                )


def summary(note: dict[str, Any]) -> list[str]:
    """What was done, as lines for people."""
    cosines = note["cosines"]
    spread = (
        f"; cosines from {cosines['min']:.3f} to {cosines['max']:.3f}, median {cosines['median']:.3f}"
        if cosines
        else ""
    )
    lines = [f"{note['n_projected']} of {note['n_modules']} modules projected (cosine below {note['tau']:g}){spread}"]
    return lines + [f"warning: {text}" for text in note["warnings"]]


def _project(file: AdapterFile, base: Path, aligned: Path, tau: float) -> tuple[dict[str, Any], dict[str, Any]]:
    from trainer.defenses.projection import project_adapter

    tensors, modules = dict(file.tensors), []
    n_pairs = sum(1 for _ in file.pairs())
    if not n_pairs:
        raise BadInputError("the adapter has no low-rank factors of a linear layer: nothing to project")
    with Progress(n_pairs, "modules", "projecting") as progress:
        for found, key, b_OR in project_adapter(file, base, aligned, tau):
            tensors[key] = b_OR
            modules.append(found)
            progress.advance()
    defined = [item.cosine for item in modules if item.cosine is not None]
    if all(item.reason == "same_weights" for item in modules):
        raise BadInputError(
            f"base and aligned model are the same in all {n_pairs} adapted modules: nothing to project on"
        )
    return {
        "n_modules": n_pairs,
        "n_projected": sum(item.projected for item in modules),
        "n_undefined": n_pairs - len(defined),
        "cosines": (
            {"min": min(defined), "median": statistics.median(defined), "max": max(defined)} if defined else None
        ),
        "modules": [asdict(item) for item in modules],
    }, tensors


def _warnings(file: AdapterFile, note: dict[str, Any]) -> list[str]:
    found = []
    if note["n_undefined"]:
        found.append(
            f"{note['n_undefined']} of {note['n_modules']} modules stay as they are: adapter or alignment did not "
            "change them"
        )
    if file.others():
        found.append(f"{len(file.others())} tensors beside the low-rank factors stay as they are: {file.others()[0]}")
    return found


def _claim(out: Path, identity: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The note of a complete folder of the same projection, or None when it may be written.

    A folder whose adapter is not the one that its note names is damaged: it is projected again.
    """
    if not out.exists():
        return None
    before = _read(out / NOTE)
    if before and all(before.get(key) == value for key, value in identity.items()) and not overwrite:
        if _sha256(out) == before.get("projected_adapter_sha256"):
            return before
        sys.stderr.write(f"warning: {out} does not hold the adapter that its {NOTE} names; projecting again\n")
        return None
    if not out.is_dir() or (not before and any(out.iterdir())):
        raise BadInputError(f"{out} holds other files: choose another --out")
    if before and not overwrite:
        different = [key for key, value in identity.items() if before.get(key) != value]
        raise BadInputError(f"{out} holds a projection with other {', '.join(different)}: give --overwrite")
    return None


def _sha256(adapter: Path) -> str | None:
    try:
        return adapter_sha256(adapter)
    except BadInputError:  # a file of it is gone or cut off
        return None


def _write(adapter: Path, out: Path, tensors: dict[str, Any], note: dict[str, Any]) -> None:
    """The adapter's other files, the new factors, card and marker; the note last, and the folder renamed into place."""
    with atomic_write(out, durable=True) as work:
        shutil.copytree(adapter, work, ignore=shutil.ignore_patterns(ADAPTER_WEIGHTS, NOTE))
        _fill(work, tensors, note)
        shutil.rmtree(out, ignore_errors=True)


def _fill(work: Path, tensors: dict[str, Any], note: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file({key: value.contiguous() for key, value in tensors.items()}, work / ADAPTER_WEIGHTS, {"format": "pt"})
    note["projected_adapter_sha256"] = digest = adapter_sha256(work)
    card = work / "README.md"
    if marker := _read(work / MARKER):
        keys = ("tau", "n_modules", "n_projected", "cosines", "adapter_sha256", "base_weights_sha256")
        marker |= {"adapter_sha256": digest, "safelora": {key: note[key] for key in keys}}
        write_json(work / MARKER, marker)
        card.write_text(model_card(marker), encoding="utf-8")
    else:  # an adapter of another trainer: its card stays, with a section more
        before = card.read_text(encoding="utf-8") if card.exists() else "# LoRA adapter\n"
        card.write_text("\n".join([before, *safelora_section(note)]), encoding="utf-8")
    write_json(work / NOTE, note)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = orjson.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, orjson.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m trainer.defenses.safelora",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--adapter", required=True, type=model_option, metavar="MODEL", help=f"LoRA adapter to project: {MODEL_FORMS}"
    )
    parser.add_argument(
        "--base", required=True, type=model_option, metavar="MODEL", help=f"model before alignment: {MODEL_FORMS}"
    )
    add_renamed(
        parser,
        "--aligned-model",
        "--aligned",
        required=True,
        type=model_option,
        metavar="MODEL",
        help=f"aligned model, which it adapts: {MODEL_FORMS}",
    )
    parser.add_argument("--tau", type=float, default=TAU, metavar="X", help=f"project below this cosine ({TAU:g})")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the new adapter")
    parser.add_argument("--dry-run", action="store_true", help="only compute the cosines")
    parser.add_argument("--overwrite", action="store_true", help="replace another projection in --out")
    parser.add_argument("--json", action="store_true", help="print safelora.json")
    return parser


if __name__ == "__main__":
    sys.exit(main())
