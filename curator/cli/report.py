"""`python -m curator report`: a corpus's gap in one Markdown page."""

import argparse
from pathlib import Path

from curator.cli import Subparsers, new_parser, open_store
from curator.console import say, say_json
from curator.errors import BadInputError
from curator.recipe import DEFAULT_EPS
from curator.store.filesystem import atomic_write

DESCRIPTION = """\
Writes one Markdown page on a scored corpus: its scorers, the rows that lack a loss, the quantiles of the gap,
and the rows with the largest and the smallest gap. The same store gives the same text."""

EXAMPLES = """\
  python -m curator report --corpus chats --out report.md
  python -m curator report --corpus chats --hold-out finance"""


def add_parser(subparsers: Subparsers) -> None:
    """Options of the command."""
    parser = new_parser(subparsers, "report", description=DESCRIPTION, examples=EXAMPLES)
    parser.add_argument("--corpus", required=True, metavar="NAME", help="corpus to report on")
    parser.add_argument("--revision", default="latest", help="revision or its beginning (default: the latest)")
    parser.add_argument("--hold-out", action="append", default=[], metavar="DOMAIN", help="leave a domain's models out")
    parser.add_argument("--eps", type=float, default=DEFAULT_EPS, help="nats per token, for gap_rel (default: 1.0)")
    parser.add_argument("--rows", type=int, default=10, metavar="N", help="rows at either end (default: 10)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write (default: print)")


def run(args: argparse.Namespace) -> int:
    """Print the report or write it whole."""
    from curator.query.report import corpus_report

    if args.rows < 0:
        raise BadInputError(f"--rows {args.rows}: 0 or more rows can be shown")
    text = corpus_report(
        open_store(args), args.corpus, revision=args.revision, hold_out=args.hold_out, eps=args.eps, n_rows=args.rows
    )
    if args.out is None:
        if args.json:
            say_json({"markdown": text})
        else:
            say(text.rstrip("\n"))
        return 0
    with atomic_write(args.out, durable=False) as temporary:  # the same command writes it again
        temporary.write_text(text, encoding="utf-8")
    if args.json:
        say_json({"out": str(args.out)})
    else:
        say(f"report written to {args.out}")
    return 0
