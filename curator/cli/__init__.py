"""The commands of `python -m curator`, one module each.

A command module has `add_parser(subparsers)` and `run(args) -> int`; it is imported only when it is chosen.
"""

import argparse
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from curator.corpus.task_set import TaskSet
    from curator.store.store import Store

# In the order of the work. The text is the one line that `python -m curator --help` shows.
COMMANDS = {
    "status": "what a store holds, and the next command",
    "doctor": "look at a chat file before it is used: bad rows, duplicates, lengths, what a template does",
    "ingest": "read chat files into a corpus of distinct conversations",
    "score": "compute a corpus's losses under one model (aligned, misaligned or benign)",
    "prepare": "make the pool file of a scored corpus, as score and import do at their end",
    "mix": "mix safe rows of a scored corpus into a task file",
    "sql": "query the store: corpora, scorers, losses and the gap",
    "export": "write a score pool (corpus, losses, identities) as one file set",
    "import": "bring a score pool into a store, every file checked",
    "snippet": "settings for axolotl, datasets, LLaMA-Factory, TRL or unsloth that keep a mix's order, with its cards",
    "audit": "compare a data set's gap with a scored corpus, row by row and as a set",
    "remove": "take a scorer with its losses out of a store",
    "verify": "check a mix's files and rows against its manifest",
    "diff": "say what differs between two mixes, row by row, and why",
    "report": "write a report on a scored corpus or a mix",
    "plot": "draw gaps, losses and the ratio over a mix as PNG or SVG",
}


N_LISTED = 20  # bad rows that are listed for a person
Subparsers = Any  # argparse keeps the type of add_subparsers() private


def new_parser(subparsers: Subparsers, name: str, *, description: str, examples: str) -> argparse.ArgumentParser:
    """The parser of one command, with the options that all share: --store and --json."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        name,
        help=COMMANDS[name],
        description=description,
        epilog=f"examples:\n{examples}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_common_options(parser)
    return parser


def add_common_options(parser: argparse.ArgumentParser) -> None:
    """Declare --store and --json."""
    parser.add_argument(
        "--store",
        default=default_store(),
        metavar="DIR",
        help="folder or URL of the store (default: $BALLAST_STORE, else ./store)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document for scripts")


def default_store() -> str:
    """The store that is meant where none is named."""
    return os.environ.get("BALLAST_STORE", "./store")


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """How chat files are read: --format, --layout, --max-row-bytes."""
    from curator.corpus.formats import CONTAINERS, LAYOUTS, MAX_ROW_BYTES

    parser.add_argument("--format", choices=CONTAINERS, help="how records are packed (default: detected)")
    parser.add_argument("--layout", choices=LAYOUTS, help="how a conversation is written (default: detected by record)")
    parser.add_argument(
        "--max-row-bytes",
        type=int,
        default=MAX_ROW_BYTES,
        metavar="N",
        help=f"bytes of one record; a larger one is a bad row (default: {MAX_ROW_BYTES:,})",
    )


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """How a user's data set is read, and what happens to its bad rows: those of reading, and --on-bad-rows."""
    add_reading_options(parser)
    parser.add_argument(
        "--on-bad-rows",
        choices=("refuse", "drop"),
        default="refuse",
        help="refuse a data set with bad rows and list them (default), or keep them out and count them",
    )


def row_bytes(args: argparse.Namespace) -> int:
    """The bound that --max-row-bytes gives; raises BadInputError below 1."""
    from curator.errors import BadInputError

    if args.max_row_bytes < 1:
        raise BadInputError(f"--max-row-bytes {args.max_row_bytes}: give at least 1")
    return int(args.max_row_bytes)


def read_data(source: str, workdir: "Path", args: argparse.Namespace) -> "TaskSet":
    """The rows of a data set as the options of `add_data_options` say; bad ones are listed for a person (capped).

    Raises BadRowsError for bad rows that are not to be kept out.
    """
    from curator.console import list_problems
    from curator.corpus.formats import ReadLimits
    from curator.corpus.task_set import read_task_set

    limits = ReadLimits(max_row_bytes=row_bytes(args))
    task_set = read_task_set(source, workdir, format=args.format, layout=args.layout, limits=limits)
    if task_set.n_rejected and not args.json:
        list_problems(task_set.reject_dicts()[:N_LISTED])
    task_set.require_usable(args.on_bad_rows)
    return task_set


def open_store(args: argparse.Namespace, *, create: bool = False) -> "Store":
    """The store that --store names; raises MissingError when there is none and `create` is false."""
    from curator.store.store import Store

    return Store(args.store).open(create=create)
