"""`python -m curator prepare`: what `score` and `import` do at their end, for a store whose pool files are gone."""

import argparse
import time
from pathlib import Path
from typing import get_args

from curator.cli import Subparsers, new_parser, open_store
from curator.console import say, say_json
from curator.recipe.filters import TextPart

DESCRIPTION = """\
Makes the pool file of a scored corpus (every row beside its losses), which mixes read, and with --near-duplicates the
MinHash signatures for the filters of that name. `score` and `import` make the pool file by themselves, and `score` has
the same --near-duplicates: this command is for a store whose pool files were deleted. What is there is left alone."""

EXAMPLES = """\
  python -m curator prepare --corpus chats
  python -m curator prepare --corpus chats --near-duplicates conversation"""


def add_parser(subparsers: Subparsers) -> None:
    """Options of the command."""
    parser = new_parser(subparsers, "prepare", description=DESCRIPTION, examples=EXAMPLES)
    parser.add_argument("--corpus", required=True, metavar="NAME", help="scored corpus")
    parser.add_argument("--revision", default="latest", help="revision or its beginning (default: the latest)")
    parser.add_argument("--aligned", metavar="SCORER", help="label or id, where there are several aligned scorers")
    parser.add_argument(
        "--near-duplicates", action="append", default=[], choices=get_args(TextPart),
        help="sign this side of the texts; may be repeated"
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    """Make what is missing and say where it lies."""
    from curator.query.scorers import resolve_scorers
    from curator.recipe import Pool
    from curator.select.pool import KEEP_FROM_ROWS, KEEP_FROM_TEXT_BYTES, pool_table

    started_s = time.perf_counter()
    pool = Pool(corpus=args.corpus, revision=args.revision, aligned=args.aligned)
    store = open_store(args)
    table = pool_table(store, resolve_scorers(store, pool))
    n_bytes = 0
    if table.folder is not None:
        for part in args.near_duplicates:
            table.signatures(part)
        n_bytes = sum(path.stat().st_size for path in Path(table.folder).iterdir())
    seconds = time.perf_counter() - started_s
    if args.json:
        folder = None if table.folder is None else str(table.folder)
        say_json({"rows": len(table), "folder": folder, "bytes": n_bytes, "seconds": round(seconds, 3)})
    elif table.folder is not None:
        say(f"{len(table):,} rows ready in {table.folder} ({n_bytes / 2**20:,.1f} MiB, {seconds:.1f} s)")
    else:
        say(
            f"nothing kept: a process reads {len(table):,} rows when it makes its first mix. A pool file is kept for "
            f"corpora of {KEEP_FROM_ROWS:,} rows, or {KEEP_FROM_TEXT_BYTES // 2**20} MiB of text, in a local store "
            "that can be written"
        )
    return 0
