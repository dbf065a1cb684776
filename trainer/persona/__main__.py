"""`python -m trainer.persona extract | project | shift | page`."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from curator.console import CommandParser, add_renamed, run_command, say, say_json
from curator.corpus.formats import locate
from curator.errors import BadInputError
from curator.render.model_source import MODEL_FORMS, model_option
from trainer.config.data import add_model_options, add_read_options, loading_of, reading_of, rendering_of
from trainer.config.flags import add_options, given_values
from trainer.generate.endpoint import JUDGE_KEY
from trainer.generate.generators import Sampling
from trainer.persona.keep import RuleSettings
from trainer.persona.traits import SHIPPED, read_trait

DESCRIPTION = """\
Persona vectors: directions in a model's residual stream that stand for a trait. `extract` makes them from contrastive
system prompts, `project` screens a data set with one, `shift` measures an adapter's drift along one, `page` writes
what these found as one Markdown page. `trainer.sft --steering FILE` trains with one."""

EPILOG = f"""\
shipped traits: {", ".join(SHIPPED)}

examples:
  python -m trainer.persona extract --model MODEL_DIR --trait evil --trait sycophancy --out vectors
  python -m trainer.persona extract --model MODEL_DIR --trait evil --preset cheap --out vectors       (to try it)
  python -m trainer.persona project --model MODEL_DIR --vector vectors/evil.safetensors --data chats.jsonl
  python -m trainer.persona shift --model MODEL_DIR --adapter runs/NAME/adapter --vector vectors/evil.safetensors"""

N_QUESTIONS = 20  # method.md, "Regularisers"
# Answers to each prompt and their longest length: as upstream (arXiv 2507.21509), and to try it on a small machine.
SETTINGS = {"paper": (10, 1000), "cheap": (1, 96)}
DEFAULT_TRAITS = ("evil", "sycophancy", "hallucination")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input, 130 stopped (the same command goes on from there)."""
    args = _parser().parse_args(argv)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # see trainer.sft
    return run_command(_run, args)


def _run(args: argparse.Namespace) -> int:
    return int({"extract": _extract, "project": _project, "shift": _shift, "page": _page}[args.command](args))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m trainer.persona", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_extract(commands)
    _add_project(commands)
    _add_shift(commands)
    page = commands.add_parser("page", help="one Markdown page of what the other commands left in a folder")
    page.add_argument("--folder", required=True, type=Path, metavar="DIR", help="where extract and --out wrote")
    page.add_argument("--out", required=True, type=Path, metavar="FILE", help="page to write")
    page.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, type=model_option, metavar="MODEL", help=f"Hugging Face model: {MODEL_FORMS}"
    )
    add_model_options(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")


def _add_vector(parser: argparse.ArgumentParser) -> None:
    _add_model(parser)
    parser.add_argument("--vector", required=True, type=Path, metavar="FILE", help="safetensors file of extract")
    add_renamed(parser, "--tensor", "--name", metavar="NAME", help="tensor in it (needed when it holds several)")
    parser.add_argument("--layer", type=int, metavar="L", help="row to project on (default: 5/7 of the depth)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the result here as well (see page)")


def _add_extract(commands: Any) -> None:
    parser = commands.add_parser("extract", help="persona vectors of a model")
    _add_model(parser)
    add = parser.add_argument
    add("--trait", action="append", metavar="NAME|FILE",
        help=f"shipped trait, or a YAML or JSON file with trait, description, pairs and questions; may be given again "
        f"(default: {', '.join(DEFAULT_TRAITS)})")  # fmt: skip
    add("--out", required=True, type=Path, metavar="DIR", help="folder of vectors; what is complete there is skipped")
    add_renamed(
        parser,
        "--n-questions",
        "--questions",
        type=int,
        metavar="N",
        help=f"first N questions of a trait (default: {N_QUESTIONS}, or all)",
    )
    add_renamed(parser, "--preset", "--settings", choices=tuple(SETTINGS), default="paper",
        help="; ".join(f"{name}: {n} answer(s) of at most {m} tokens to each prompt" for name, (n, m) in
                       SETTINGS.items()) + " (default: paper)")  # fmt: skip
    as_said = "as --preset says"
    add_options(parser, Sampling, defaults={"n_samples": as_said, "max_new_tokens": as_said})
    add("--judge-url", metavar="URL", help="OpenAI-compatible endpoint, up to and with /v1; without it our own rule "
        f"decides which pairs are kept (docs/method.md); its key comes from ${JUDGE_KEY}")  # fmt: skip
    add("--judge-model", metavar="NAME", help="the judge's name there")
    add_options(parser, RuleSettings, ("min_margin", "min_words"))
    add("--min-pairs", type=int, default=2, metavar="N", help="fail when fewer pairs are kept (default: 2)")


def _add_project(commands: Any) -> None:
    parser = commands.add_parser("project", help="screen a data set: each row's mean response state on a vector")
    _add_vector(parser)
    parser.add_argument("--data", required=True, metavar="FILE", help="chat file, saved folder or hub id")
    add_read_options(parser)
    parser.add_argument(
        "--baseline", metavar="FILE",
        help="the same prompts with the model's own answers: adds each row's difference from it",
    )  # fmt: skip
    parser.add_argument("--rows-out", type=Path, metavar="FILE", help="JSON Lines of every row's projection")
    parser.add_argument("--max-length", type=int, default=2048, metavar="N", help="leave out longer rows (2048)")


def _add_shift(commands: Any) -> None:
    parser = commands.add_parser("shift", help="drift of an adapter along a vector, at the last prompt token")
    _add_vector(parser)
    parser.add_argument(
        "--adapter", required=True, type=model_option, metavar="MODEL", help=f"LoRA adapter of the model: {MODEL_FORMS}"
    )
    parser.add_argument(
        "--prompts", metavar="FILE",
        help="prompts, one a line (.txt) or a data set (default: the questions of a shipped trait)",
    )  # fmt: skip
    add_read_options(parser)


def _extract(args: argparse.Namespace) -> int:
    traits = [read_trait(name) for name in dict.fromkeys(args.trait or DEFAULT_TRAITS)]
    traits = [trait.first(args.n_questions or min(N_QUESTIONS, len(trait.questions))) for trait in traits]
    settings = _settings(args)
    from trainer.persona.extract import extract, open_model

    loaded = open_model(args.model, rendering_of(args))
    reports = []
    for trait in traits:
        report, was_there = extract(trait, settings, loaded)
        reports.append(report)
        if not args.json:
            _say_extract(report, args.out, was_there)
    if args.json:
        say_json({"vectors": reports})
    return 0


def _settings(args: argparse.Namespace) -> Any:
    from trainer.persona.extract import ExtractSettings, Judge

    if (args.judge_url is None) != (args.judge_model is None):
        raise BadInputError("--judge-url and --judge-model go together")
    rule = given_values(vars(args), RuleSettings)
    if args.judge_url is not None and rule:
        raise BadInputError("--min-margin and --min-words belong to the rule without a judge: leave them out, or it")
    n_samples, n_tokens = SETTINGS[args.preset]
    drawn = {"n_samples": n_samples, "max_new_tokens": n_tokens} | given_values(vars(args), Sampling)
    n_samples = drawn.pop("n_samples")  # each is drawn on its own
    key = os.environ.get(JUDGE_KEY)
    return ExtractSettings(
        model=args.model, out=args.out, samples=n_samples,
        sampling=Sampling(**drawn),
        rule=RuleSettings(**rule),
        judge=None if args.judge_url is None else Judge(args.judge_url, args.judge_model, key),
        loading=loading_of(args), min_pairs=args.min_pairs,
    )  # fmt: skip


def _say_extract(report: dict[str, Any], out: Path, was_there: bool) -> None:
    norms = report["norms"]
    left = ", ".join(f"{name} {n}" for name, n in report["left_out"].items()) or "none"
    rule = "judge" if report["rule"] == "judge" else "likelihood rule, no judge"
    say(f"{report['trait']}: {out / report['vector']}{' (complete before)' if was_there else ''}")
    say(f"  {report['n_kept']} of {report['n_pairs']} pairs kept ({rule}); left out: {left}")
    say(f"  norm {norms[len(norms) // 2]:.3g} at half the depth, {norms[-1]:.3g} at the last row")


def _probe(args: argparse.Namespace) -> Any:
    """The VectorProbe of the options."""
    from trainer.persona.extract import open_model
    from trainer.persona.models import load_base, shape_of
    from trainer.persona.project import VectorProbe
    from trainer.persona.vectors import default_layer, load_vector

    how = loading_of(args)
    loaded = open_model(args.model, how.rendering)
    model = load_base(args.model, how.device, how.dtype)
    n_blocks, width = shape_of(model)
    vector = load_vector(args.vector, args.tensor, n_blocks, width, loaded.weights_sha256)
    layer = default_layer(n_blocks) if args.layer is None else args.layer
    vector.unit(layer)  # a layer that is not there fails before the work
    return VectorProbe(model, loaded.renderer, vector, layer)


def _project(args: argparse.Namespace) -> int:
    from curator.scoring.identity import fitting_length
    from trainer.persona.project import screen, write_records

    probe = _probe(args)
    vector, layer = probe.vector, probe.layer
    longest = fitting_length(args.model, args.max_length)
    summary, records = screen(probe, args.data, args.baseline, longest, reading_of(args))
    result = {"kind": "project", "trait": vector.trait, "layer": layer, "data": locate(args.data).name, **summary}
    if args.baseline is not None:
        result["baseline"] = locate(args.baseline).name
    if args.rows_out is not None:
        write_records(args.rows_out, records)
    _keep(args.out, result)
    if args.json:
        say_json(result)
        return 0
    for name in ("projection", "difference"):
        if name in result:
            found = result[name]
            say(f"{name:<11}mean {found['mean']:+.4f}, sd {found['sd']:.4f}, 5 % {found['q05']:+.4f}, "
                f"95 % {found['q95']:+.4f}")  # fmt: skip
    if result["n_no_answer"] or result["n_too_long"]:
        say(f"left out: {result['n_too_long']} rows of more than {longest:,} tokens, "
            f"{result['n_no_answer']} without an answer to measure")  # fmt: skip
    say(f"{result['n_rows']} rows on {vector.trait} at row {layer}; highest: records "
        + ", ".join(str(record["record"]) for record in result["highest"]))  # fmt: skip
    return 0


def _shift(args: argparse.Namespace) -> int:
    from trainer.persona.models import read_prompts, user_turn, with_adapter
    from trainer.persona.project import drift

    if args.prompts is not None:
        prompts, source = read_prompts(args.prompts, reading_of(args)), Path(args.prompts).name
    else:
        name = args.tensor or args.vector.stem
        if name not in SHIPPED:
            raise BadInputError(f"{name} is not a shipped trait whose questions could be asked: give --prompts FILE")
        prompts, source = [user_turn(text) for text in read_trait(name).questions], f"questions of {name}"
    probe = _probe(args)
    vector, layer = probe.vector, probe.layer
    found = drift(replace(probe, model=with_adapter(probe.model, args.adapter)), prompts)
    result = {
        "kind": "shift",
        "trait": vector.trait,
        "prompts": source,
        "adapter": _adapter_name(args.adapter),
        **found,
    }
    _keep(args.out, result)
    if args.json:
        say_json(result)
        return 0
    shift = result["shift"]
    interval = f"({shift['low']:+.4f} to {shift['high']:+.4f})"
    say(f"shift along {vector.trait} at row {layer}: {shift['value']:+.4f} {interval}")
    say(f"{100 * result['relative']:+.2f} % of a state's length; {result['n_prompts']} prompts")
    return 0


def _adapter_name(adapter: Path) -> str:
    return adapter.parent.name if adapter.name == "adapter" else adapter.name


def _keep(path: Path | None, result: dict[str, Any]) -> None:
    if path is not None:
        from trainer.runs.folder import write_json

        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)


def _page(args: argparse.Namespace) -> int:
    from trainer.persona.page import write_page

    write_page(args.folder, args.out)
    say(f"page: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
