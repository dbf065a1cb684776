"""`python -m curator doctor`: a chat file looked at before it is used."""

import argparse
import shlex
import sys
from pathlib import Path
from typing import get_args

from curator.audit.doctor import Diagnosis, DoctorOptions, Finding, examine, shown_masks
from curator.cli import COMMANDS, N_LISTED, Subparsers
from curator.cli.score_options import add_render_options, render_settings
from curator.console import Progress, as_typed, list_problems, one_line, say, say_json
from curator.corpus.formats import CONTAINERS, LAYOUTS
from curator.errors import BadInputError
from curator.render import MaskRule, Renderer
from curator.render.model_source import MODEL_FORMS, model_option
from curator.scoring.identity import model_window
from curator.select.eval_sets import read_prompts

DESCRIPTION = """\
Looks at a chat file without changing or storing anything: the records that cannot be used, duplicates, rows without a
question or an answer, leaked template marks, refusals, overlap with evaluation prompts. With --model (its tokenizer
is enough, torch is not needed) also tokens and their trained part, rows longer than the window, and what the chat
template refuses, leaves out or adds. `--as openai` says what a fine-tuning endpoint of that form would say.
Exit codes: 0 nothing to mend, 3 something to mend, 2 the file cannot be read as a whole."""

EXAMPLES = """\
  python -m curator doctor task.jsonl
  python -m curator doctor task.jsonl --model models/instruct --show-mask 2
  python -m curator doctor task.jsonl --as openai --json
  python -m curator doctor task.jsonl --evaluation first_plot.txt"""

FOUND = 3  # exit code
_TRAINED, _END = "\x1b[7m", "\x1b[0m"


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command's options."""
    parser = subparsers.add_parser(
        "doctor", help=COMMANDS["doctor"], description=DESCRIPTION,
        epilog=f"examples:\n{EXAMPLES}", formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("file", metavar="FILE", help="chat file, saved folder or hub id")
    add("--format", choices=CONTAINERS, help="how records are packed (default: detected)")
    add("--layout", choices=LAYOUTS, help="how a conversation is written (default: detected by record)")
    add("--model", metavar="MODEL", type=model_option, help=f"model that will be trained: {MODEL_FORMS}")
    add("--max-length", type=int, metavar="T", help="window in tokens (default: the model's)")
    add("--mask-rule", choices=get_args(MaskRule), default="all", help="which assistant turns are trained")
    add_render_options(parser)
    add("--evaluation", type=Path, metavar="FILE", action="append", default=[],
        help="prompts that no row may hold: .txt with one a line, or .jsonl; repeatable")  # fmt: skip
    add("--as", dest="form", choices=("openai",), help="also check the file as a fine-tuning endpoint would")
    add(
        "--show-mask", type=int, default=0, metavar="N", help="print N rows as the model sees them, trained text marked"
    )
    add("--json", action="store_true", help="print one JSON document for scripts")


def run(args: argparse.Namespace) -> int:
    """Look, and say what was found; 3 when something should be mended."""
    options = _options(args)
    with Progress(None, "rows", f"reading {Path(args.file).name}") as progress:
        diagnosis = examine(args.file, options, progress.advance)
    if not diagnosis.n_records:
        raise BadInputError(f"{args.file} holds no records")
    if args.json:
        say_json(diagnosis.as_dict())
        return FOUND if diagnosis.has_problems else 0
    _say(diagnosis, args)
    for place, pieces in shown_masks(args.file, options, args.show_mask) if args.show_mask else ():
        say(f"\n{place}, trained text marked:")
        say("".join(_marked(text) if trained else text for text, trained in pieces))
    return FOUND if diagnosis.has_problems else 0


def _options(args: argparse.Namespace) -> DoctorOptions:
    if args.model is None:
        for name in ("max_length", "template_date", "accept_dropped", "show_mask"):
            if getattr(args, name):
                raise BadInputError(f"--{name.replace('_', '-')} needs --model: it says something of tokens")
    if args.max_length is not None and args.max_length < 2:
        raise BadInputError(f"--max-length {args.max_length}: a row needs at least 2 tokens")
    if args.form == "openai" and not Path(args.file).is_file():
        raise BadInputError("--as openai needs one file: that is what an endpoint is sent")
    renderer = None if args.model is None else Renderer.from_folder(args.model, settings=render_settings(args))
    window = args.max_length
    if window is None and args.model is not None and (args.model / "config.json").is_file():
        window = model_window(args.model)
    evaluations = {path.name: read_prompts(path) for path in args.evaluation}
    return DoctorOptions(args.format, args.layout, renderer, window, args.mask_rule, evaluations, args.form == "openai")


def _say(found: Diagnosis, args: argparse.Namespace) -> None:
    turns = ", ".join(f"{n:,} {role}" for role, n in found.roles.items())
    say(f"{found.name}: {found.n_records:,} records, {found.n_rows:,} usable; turns: {turns or 'none'}")
    if found.lengths is not None:
        at = found.lengths
        window = "" if found.window is None else f"; window {found.window:,}"
        say(
            f"  tokens: {at.n_tokens:,}, of which {at.n_response_tokens:,} trained; a row has {at.shortest:,} to "
            f"{at.longest:,}, median {at.median:,.0f}, 95 % up to {at.p95:,.0f}{window}"
        )
    for finding in found.findings:
        say(f"  {finding.severity:<8}{_line(finding)}")
    list_problems(found.rejects[:N_LISTED])
    if found.openai is not None:
        say(
            "  an endpoint of the OpenAI form would take the file" if not found.openai else "  openai checks that fail:"
        )
        for check in found.openai:
            places = ", ".join(map(str, check["lines"][:5]))
            say(f"    {check['code']}: {check['message']}; {check['n_lines']:,} lines ({places}) {check['example']}")
    if not found.has_problems:
        say(as_typed(f"nothing to mend; next: python -m curator mix {shlex.quote(str(args.file))} --corpus NAME"))
    elif found.n_bad and not found.n_rows:
        say("no row can be used: write them in a layout that is read (docs/formats.md lists them), and look again")
    elif found.n_bad:
        say(as_typed("bad rows can be kept out: python -m curator mix FILE --corpus NAME --on-bad-rows drop"))


def _line(finding: Finding) -> str:
    places = ", ".join(finding.places[:5]) + (", ..." if finding.n_rows > 5 else "")
    example = f": {one_line(finding.example, 90)}" if finding.example else ""
    return f"{finding.n_rows:,} {finding.meaning} ({places}){example}"


def _marked(text: str) -> str:
    """Trained text: in reverse on a terminal, between brackets elsewhere."""
    return f"{_TRAINED}{text}{_END}" if sys.stdout.isatty() else f"[[{text}]]"
