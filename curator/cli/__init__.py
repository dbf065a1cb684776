"""The commands of `python -m curator`, one module each.

A command module has `add_parser(subparsers)` and `run(args) -> int`; it is imported only when it is chosen.
"""

import argparse
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
        default=os.environ.get("BALLAST_STORE", "./store"),
        metavar="DIR",
        help="folder or URL of the store (default: $BALLAST_STORE, else ./store)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document for scripts")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """How a user's data set is read, and what happens to its bad rows: --format, --layout, --on-bad-rows."""
    from curator.corpus.formats import CONTAINERS, LAYOUTS

    parser.add_argument("--format", choices=CONTAINERS, help="how records are packed (default: detected)")
    parser.add_argument("--layout", choices=LAYOUTS, help="how a conversation is written (default: each as it shows)")
    parser.add_argument(
        "--on-bad-rows",
        choices=("refuse", "drop"),
        default="refuse",
        help="refuse a data set with bad rows and list them (default), or keep them out and count them",
    )


def read_data(source: str, workdir: str, args: argparse.Namespace) -> "TaskSet":
    """The rows of a data set as the options of `add_data_options` say; bad ones are listed for a person (capped).

    Raises BadRowsError for bad rows that are not to be kept out.
    """
    from curator.console import list_problems
    from curator.corpus.task_set import read_task_set

    task_set = read_task_set(source, workdir, format=args.format, layout=args.layout)
    if task_set.n_rejected and not args.json:
        list_problems(task_set.reject_dicts()[:N_LISTED])
    task_set.require_usable(args.on_bad_rows)
    return task_set


def open_store(args: argparse.Namespace, *, create: bool = False) -> "Store":
    """The store that --store names; raises MissingError when there is none and `create` is false."""
    from curator.store.store import Store

    return Store(args.store).open(create=create)
