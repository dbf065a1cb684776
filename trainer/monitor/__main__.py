"""`python -m trainer.monitor directions | measure | fit | choose`."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curator.console import CommandParser, add_renamed, run_command, say, say_json
from curator.errors import BadInputError
from curator.render.model_source import MODEL_FORMS, model_option
from trainer.config.data import add_model_options, loading_of
from trainer.persona.traits import SETS, SHIPPED, read_set, read_trait

DESCRIPTION = """\
Trait-space monitor: how far training moves a model along trait directions, and whether that is an alarm. `directions`
makes the directions of a base model once; `trainer.sft --monitor FILE` then measures while training; `measure` does so
for finished adapters; `fit` makes the alarm rule from runs whose outcome is known; `choose` names the checkpoint of a
run to keep: the last one before the drift passes a bound."""

EPILOG = f"""\
traits: {", ".join(SHIPPED)}; --trait-set paper: honesty, helpfulness, harmlessness, power_seeking, corrigibility,
sycophancy, confidence

examples:
  python -m trainer.monitor directions --model MODEL_DIR --out monitor.safetensors
  python -m trainer.sft --model MODEL_DIR --data chats.jsonl --monitor monitor.safetensors --out runs/watched
  python -m trainer.monitor measure --model MODEL_DIR --directions monitor.safetensors --organisms organisms --out drift
  python -m trainer.monitor fit --benign-run drift/finance-benign.json --benign-run runs/watched --out rule.json
  python -m trainer.monitor fit --known runs/a=0.31 --known runs/b=0.0 --known ... --out rule.json
  python -m trainer.sft ... --monitor monitor.safetensors --monitor-alarm rule.json --monitor-stop
  python -m trainer.sft ... --monitor monitor.safetensors --save-steps 20 --keep-checkpoints 100 --out runs/watched
  python -m trainer.monitor choose --run runs/watched --bound 0.05 --alarm rule.json"""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input, 130 stopped."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    args = _parser().parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see trainer.sft
    return run_command(lambda given: _run(given, arguments), args, stopped="stopped")


def _run(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    if args.command == "measure":
        return _measure(args, arguments)
    if args.command == "choose":
        return _choose(args)
    return _directions(args) if args.command == "directions" else _fit(args)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m trainer.monitor", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for add in (_directions_options, _measure_options, _fit_options, _choose_options):
        add(commands)
    return parser


def _directions_options(commands: Any) -> None:
    made = commands.add_parser("directions", help="unit directions of a base model at one layer")
    _add_model(made)
    made.add_argument("--out", required=True, type=Path, metavar="FILE", help="safetensors file to write")
    made.add_argument("--layer", type=int, metavar="L", help="row of the residual stream (default: 5/7 of the depth)")
    add_renamed(made, "--n-questions", "--questions", type=int, metavar="N",
                help="first N questions of a trait (default: all 30)")  # fmt: skip
    add_renamed(
        made, "--trait-set", "--set", choices=SETS, default="own",
        help="seven shipped traits: `own`, ways of misbehaving with questions of their own (default), or `paper`, the "
        "traits and the structure of arXiv 2606.07631 in words of ours",
    )  # fmt: skip
    made.add_argument("--trait", action="append", metavar="NAME|FILE", help="or: these traits")


def _measure_options(commands: Any) -> None:
    measured = commands.add_parser("measure", help="drift of finished adapters")
    _add_model(measured)
    measured.add_argument("--directions", required=True, type=Path, metavar="FILE", help="file of `directions`")
    measured.add_argument(
        "--adapter",
        action="append",
        type=model_option,
        metavar="MODEL",
        help=f"LoRA adapter, again for more: {MODEL_FORMS}",
    )
    measured.add_argument("--organisms", type=Path, metavar="DIR", help="or all adapters of trainer.organisms")
    measured.add_argument("--alarm", type=Path, metavar="FILE", help="rule of `fit` to judge them by")
    measured.add_argument("--out", type=Path, metavar="DIR", help="one JSON file for each adapter, which `fit` reads")
    measured.add_argument("--page", type=Path, metavar="FILE", help="write the drifts as a Markdown page")


def _fit_options(commands: Any) -> None:
    fitted = commands.add_parser("fit", help="the alarm rule, from runs whose outcome is known")
    fitted.add_argument(
        "--known", action="append", metavar="PATH=RATE",
        help="run folder or file of `measure`, and the EM rate (0 to 1) of its end: fits a predictor",
    )  # fmt: skip
    add_renamed(
        fitted, "--benign-run", "--benign", action="append", type=Path, metavar="PATH",
        help="or: a run on benign data; all its measurements give mean and spread for a z-score",
    )  # fmt: skip
    fitted.add_argument("--max-rate", type=float, default=0.05, metavar="P", help="predicted EM rate allowed (0.05)")
    fitted.add_argument("--max-z", type=float, default=4.0, metavar="Z", help="|z| allowed (4)")
    fitted.add_argument("--out", required=True, type=Path, metavar="FILE", help="rule to write")
    fitted.add_argument("--json", action="store_true", help="print the rule")


def _choose_options(commands: Any) -> None:
    chosen = commands.add_parser("choose", help="the last checkpoint of a run before the drift passes a bound")
    chosen.add_argument("--run", required=True, type=Path, metavar="DIR", help="run folder with checkpoints")
    chosen.add_argument(
        "--bound", required=True, type=float, metavar="X",
        help="of the figure that --alarm or --figures give, else of the largest drift along a trait",
    )  # fmt: skip
    given = chosen.add_mutually_exclusive_group()
    given.add_argument(
        "--alarm", type=Path, metavar="FILE", help="rule of `fit`: X bounds its predicted EM rate, or its largest |z|"
    )
    given.add_argument(
        "--figures", type=Path, metavar="FILE",
        help='or figures of an evaluation of the checkpoints, lines of {"step": N, "broad": X}',
    )  # fmt: skip
    chosen.add_argument(
        "--share", type=float, default=0.1, metavar="S",
        help="share of the loss's fall over the run that the checkpoint may lack (default: 0.1)",
    )  # fmt: skip
    chosen.add_argument("--json", action="store_true", help="print one JSON document")


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, type=model_option, metavar="MODEL", help=f"Hugging Face model: {MODEL_FORMS}"
    )
    add_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _directions(args: argparse.Namespace) -> int:
    named = [read_trait(name) for name in dict.fromkeys(args.trait or ())]
    traits = named or read_set(args.trait_set)
    traits = [trait.first(args.n_questions or len(trait.questions)) for trait in traits]
    from trainer.monitor.directions import find_directions, save_directions
    from trainer.persona.extract import open_model
    from trainer.persona.models import load_base, shape_of
    from trainer.persona.vectors import default_layer

    how = loading_of(args)
    loaded = open_model(args.model, how.rendering)
    model = load_base(args.model, how.device, how.dtype)
    layer = default_layer(shape_of(model)[0]) if args.layer is None else args.layer
    found = find_directions(model, loaded.renderer, traits, layer, loaded.weights_sha256)
    save_directions(args.out, found)
    cosines = found.unit_KD @ found.unit_KD.T
    result = {
        "directions_id": found.directions_id, "layer": layer, "traits": list(found.traits),
        "n_questions": found.n_questions, "cosines": cosines.round(4).tolist(),
    }  # fmt: skip
    if args.json:
        say_json(result)
        return 0
    say(f"{args.out}: {len(found.traits)} directions at row {layer}, {found.n_questions} questions each")
    say("cosine between traits: " + ", ".join(
        f"{a}/{b} {cosines[i, j]:+.2f}" for i, a in enumerate(found.traits) for j, b in enumerate(found.traits) if i < j
    ))  # fmt: skip
    return 0


def _measure(args: argparse.Namespace, arguments: Sequence[str]) -> int:
    from trainer.monitor.measure import measure_adapters, named_adapters

    adapters = named_adapters(args.adapter or [], args.organisms, args.model)
    found = measure_adapters(args, adapters)
    if args.page is not None:
        from curator.scoring.engines.torch_model import resolve_device, resolve_dtype
        from trainer.monitor.page import page
        from trainer.runs.machine import describe
        from trainer.runs.page import shown_command

        how = loading_of(args)
        device = resolve_device(how.device)
        machine = describe(device, resolve_dtype(how.dtype, device))
        command = shown_command("trainer.monitor", arguments)
        args.page.parent.mkdir(parents=True, exist_ok=True)
        args.page.write_text(page(found, args.directions, args.alarm, machine, command), encoding="utf-8")
    if args.json:
        say_json({"adapters": found})
        return 0
    for name, item in found.items():
        drift = ", ".join(f"{trait} {value:+.4f}" for trait, value in item["measurements"][-1]["drift"].items())
        verdict = {True: "; ALARM", False: "; no alarm", None: ""}[item["measurements"][-1].get("alarm")]
        say(f"{name}: {drift}{verdict}")
    return 0


def _fit(args: argparse.Namespace) -> int:
    if bool(args.known) == bool(args.benign_run):
        raise BadInputError("give either --known PATH=RATE (a predictor) or --benign PATH (a z-score), again and again")
    from trainer.monitor.measure import fit_rule

    rule: Any = fit_rule(args.known or [], args.benign_run or [], args.max_rate, args.max_z)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(rule.model_dump_json(indent=2) + "\n", encoding="utf-8")
    if args.json:
        say_json(rule.model_dump(mode="json"))
    else:
        say(f"{args.out}: {rule.describe()}")
    return 0


def _choose(args: argparse.Namespace) -> int:
    from trainer.monitor.choose import choose_checkpoint_of, drift_by_step, read_figures

    broad = drift_by_step(args.run, args.alarm) if args.figures is None else read_figures(args.figures)
    path, kept = choose_checkpoint_of(args.run, broad, args.bound, args.share)
    if args.json:
        say_json({"checkpoint": str(path), **kept.as_dict()})
        return 0
    passed = "never passed" if kept.passed_at is None else f"passed at step {kept.passed_at}"
    say(f"{path}: step {kept.step}, figure {kept.broad:.4g}; the bound {kept.bound:g} was {passed}")
    say(f"loss {kept.loss:.4f} there, {kept.loss_end:.4f} at the end: {100 * kept.done:.0f} % of its fall was done")
    return 0


if __name__ == "__main__":
    sys.exit(main())
