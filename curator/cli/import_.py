"""`python -m curator import`: a score pool into a store."""

import argparse
from pathlib import Path

from curator.cli import Subparsers, new_parser, open_store
from curator.cli.export import say_pool
from curator.cli.status import say_next
from curator.console import say, say_json
from curator.corpus.export import import_pool
from curator.errors import BallastError
from curator.store.store import Store

DESCRIPTION = """\
Brings an exported score pool into a store (made when there is none). Every file is checked against its hash before
anything is written; what is there already is left alone; a name that stands for something else in the store is
refused. A later export of a pool that has grown brings what is new."""

EXAMPLES = """\
  python -m curator import chats.tar
  python -m curator import pools/chats --store s3://bucket/store --expect 0123456789abcdef0123456789abcdef"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command's options."""
    parser = new_parser(subparsers, "import", description=DESCRIPTION, examples=EXAMPLES)
    parser.add_argument("pool", metavar="PATH", type=Path, help="a folder or .tar that `export` wrote")
    parser.add_argument("--expect", metavar="ID", help="the pool id that it must have, as `export` printed it")


def run(args: argparse.Namespace) -> int:
    """Import, and say what there is now."""
    store = open_store(args, create=True)
    report = import_pool(store, args.pool, args.expect)
    problem = _publish(store, report.corpus)
    if args.json:
        say_json(report.as_dict())
        return 0
    say_pool(report)
    if problem is not None:
        say(f"note: the pool file is not made, so the first mix will make it: {problem}")
    say("it was here before" if not report.n_written else f"checked and imported; {report.n_written:,} files were new")
    say_next(args, store, report.corpus)
    return 0


def _publish(store: Store, corpus: str) -> str | None:
    """Make the pool files that mixes read; what keeps them from being made, None where nothing does."""
    from curator.select.pool import publish_pool  # Polars, which the other commands start without

    try:
        publish_pool(store, corpus)
    except BallastError as error:
        return error.message
    return None
