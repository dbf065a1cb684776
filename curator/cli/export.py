"""`python -m curator export`: a score pool as one file set."""

import argparse
from pathlib import Path

from curator.cli import Subparsers, new_parser, open_store
from curator.console import as_typed, say, say_json
from curator.corpus.export import PoolReport, export_pool

DESCRIPTION = """\
Writes a score pool (a corpus, its scorers' losses and identities, their renderers) to a folder or a .tar, with the
hash of every file. Another store imports it and can mix from it without a model or a GPU. The same pool gives the
same bytes and the same pool id."""

EXAMPLES = """\
  python -m curator export --corpus chats --out chats.tar
  python -m curator export --corpus chats --out pools/chats --scorer base --scorer finance"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command's options."""
    parser = new_parser(subparsers, "export", description=DESCRIPTION, examples=EXAMPLES)
    parser.add_argument("--corpus", required=True, metavar="NAME", help="corpus to export")
    parser.add_argument("--out", required=True, metavar="PATH", type=Path, help="a new .tar file, or a new folder")
    parser.add_argument(
        "--scorer",
        action="append",
        metavar="SCORER",
        help="id, id prefix or label; may be given several times (default: all complete ones)",
    )


def run(args: argparse.Namespace) -> int:
    """Export, and say what the file set holds."""
    report = export_pool(open_store(args), args.corpus, args.out, args.scorer)
    if args.json:
        say_json(report.as_dict())
        return 0
    say_pool(report)
    for name in report.left_out:
        say(f"  left out, not complete: {name}")
    there = f"python -m curator import {args.out.name} --expect {report.pool_id}"
    say(as_typed(f"written to {args.out}; elsewhere: {there}"))
    return 0


def say_pool(report: PoolReport) -> None:
    """What a pool is, in a few lines."""
    say(f"pool {report.pool_id}: {report.n_files:,} files, {report.n_bytes / 1e6:,.1f} MB")
    say(f"  corpus {report.corpus}: {report.n_examples:,} examples, revision {report.revision}")
    say(f"  scorers: {', '.join(report.scorers) or 'none, so that only random mixes can be made'}")
