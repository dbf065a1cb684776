"""`python -m tests.bench mixing`: the mixing benchmark."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from curator.console import run_command, say, say_json
from curator.errors import BadInputError
from tests.bench.mixing.request import WORK, MixBenchRequest

DESCRIPTION = """\
Times each piece of mixing beside the peer that people use for it, in turns: interleaving beside `datasets`, choosing
the best rows of a large pool beside Polars and DuckDB, a whole mix to disk beside `datasets`, the format check beside
the usual one, and near duplicates beside datasketch. Pools are made up, from fixed seeds; no store is read. Needs the
extra `bench`; the full sizes need 16 GB of memory and of disk, and most of an hour on two cores."""

EXAMPLES = """\
  python -m tests.bench mixing --json
  python -m tests.bench mixing --work interleave validate --repeats 5
  python -m tests.bench mixing --repeats 5 --repeats-of interleave=1 without_replacement=1
  python -m tests.bench mixing --choice-rows 1000000 --pool-rows 100000 --out docs/results/mixing.md"""

_SIZES = {
    "index_rows": "task rows of the interleave index",
    "choice_rows": "rows of the pool that the best are chosen from",
    "pool_rows": "rows of the pool of conversations",
    "user_rows": "rows of the user's file",
    "check_rows": "rows that the format check reads",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure; returns the exit code."""
    return run_command(run, _parser().parse_args(argv))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench mixing", description=DESCRIPTION, epilog=f"examples:\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print one JSON document for scripts")
    fields = MixBenchRequest.model_fields
    parser.add_argument("--work", nargs="+", choices=WORK, default=WORK, help="pieces of work (default: all)")
    parser.add_argument(
        "--repeats", type=int, default=fields["repeats"].default, metavar="R", help="turns (default: 3)"
    )
    parser.add_argument(
        "--repeats-of", nargs="+", type=_turns, default=(), metavar="WORK=R",
        help="turns of single pieces of work (default: --repeats; 1 for more than 200,000 rows without replacement)",
    )  # fmt: skip
    for name, what in _SIZES.items():
        default = fields[name].default
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=int, default=default, metavar="N", help=f"{what} (default: {default:,})"
        )
    parser.add_argument(
        "--without-replacement-rows", type=int, nargs="+", default=fields["without_replacement_rows"].default,
        metavar="N", help="rows of the index without replacement (default: 200,000 and 2,000,000)",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FILE", type=Path, help="also write the figures as a Markdown page")
    return parser


def _turns(text: str) -> tuple[str, int]:
    """`top=5` as ("top", 5)."""
    piece, _, turns = text.partition("=")
    if not turns.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a piece of work with its turns, like top=5")
    return piece, int(turns)


def run(args: argparse.Namespace) -> int:
    """Measure, and print or write the figures."""
    from pydantic import ValidationError

    given = {name: getattr(args, name) for name in MixBenchRequest.model_fields}
    given["repeats_of"] = dict(args.repeats_of)
    try:
        request = MixBenchRequest.model_validate(given)
    except ValidationError as error:
        found = error.errors()[0]
        option = "--" + str(found["loc"][0]).replace("_", "-")
        raise BadInputError(f"{option} {found['input']}: {found['msg']}") from error
    from tests.bench.mixing.page import page
    from tests.bench.mixing.run import run_bench_mix  # imports the engines, so after the options are in order

    def write(document: dict[str, Any]) -> None:
        """The page so far, so that a run that is stopped leaves what it measured."""
        if args.out is not None:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(page(document, command_of(request)), encoding="utf-8")

    document = run_bench_mix(request, write)
    if args.json:
        say_json(document)
    else:
        say(page(document, command_of(request)).rstrip())
    return 0


def command_of(request: MixBenchRequest) -> str:
    """The command as another person would give it: options that differ from the defaults."""
    words = ["python -m tests.bench mixing"]
    for name, field in MixBenchRequest.model_fields.items():
        value = getattr(request, name)
        if value == field.get_default(call_default_factory=True):
            continue
        if isinstance(value, dict):
            value = tuple(f"{piece}={turns}" for piece, turns in value.items())
        words += ["--" + name.replace("_", "-"), *map(str, value if isinstance(value, tuple) else (value,))]
    return " ".join(words)
