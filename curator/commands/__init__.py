"""The commands of `python -m curator`, one module each.

A command module has `add_parser(subparsers)` and `run(args) -> int`; it is imported only when it is chosen.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import orjson

from curator.errors import BallastError
from curator.progress import say

if TYPE_CHECKING:
    from curator.store import Store

# In the order of the work. The text is the one line that `python -m curator --help` shows.
COMMANDS = {
    "ingest": "read chat files into a corpus of distinct conversations",
    "score": "compute a corpus's losses under one model (aligned, misaligned or benign)",
    "prepare": "make ahead what the first mix of a scored corpus would wait for",
    "mix": "mix safe rows of a scored corpus into a task file",
    "sql": "query the store: corpora, scorers, losses and the gap",
    "export": "write a score pool (corpus, losses, identities) as one file set",
    "import": "bring a score pool into a store, every file checked",
    "snippet": "settings for axolotl, LLaMA-Factory or TRL that keep a mix's order",
    "audit": "compare a data set's gap with a scored corpus, row by row and as a set",
    "worker": "do the jobs that the HTTP service queues: long mixes and audits",
    "bench": "time scoring against its peers on this machine",
    "bench-mix": "time mixing against its peers on this machine",
    "verify": "check a mix's files and rows against its manifest",
    "diff": "say what differs between two mixes, row by row, and why",
    "report": "write a report on a scored corpus or a mix",
    "plot": "draw gaps, losses and the ratio over a mix as PNG or SVG",
}


class CommandHelp(argparse.RawDescriptionHelpFormatter):
    """Text as written, and each command's help beside its name.

    argparse forgets that commands are indented when it measures their column, so the longest name would stand on a
    line of its own.
    """

    def add_argument(self, action: argparse.Action) -> None:
        """Make the column as much wider as commands are indented."""
        before = self._action_max_length
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction) and self._action_max_length > before:
            self._action_max_length += self._indent_increment


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
    parser.add_argument(
        "--store",
        default=os.environ.get("BALLAST_STORE", "./store"),
        metavar="DIR",
        help="folder or URL of the store (default: $BALLAST_STORE, else ./store)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document for scripts")
    return parser


def open_store(args: argparse.Namespace, *, create: bool = False) -> "Store":
    """The store that --store names; raises MissingError when there is none and `create` is false."""
    from curator.store import Store

    return Store(args.store).open(create=create)


def say_json(document: object) -> None:
    """Print one indented JSON document."""
    say(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())


def list_problems(problems: Sequence[Mapping[str, Any]]) -> None:
    """One line on stderr for each problem of a bad record (`Reject.as_dicts`)."""
    for item in problems:
        place = f"record {item['record']}" if item["line"] is None else f"line {item['line']}"
        at = f" (byte {item['byte_offset']})" if item["line"] is None and item["byte_offset"] is not None else ""
        sys.stderr.write(f"  {place}{at} {item['pointer'] or '/'}: {item['code']}: {item['message']}\n")
    sys.stderr.flush()


def report_error(error: BallastError, *, as_json: bool) -> None:
    """One line on stderr; with --json also the error body that the HTTP service uses, on stdout."""
    if as_json:
        say_json({"error": {"code": error.code, "message": error.message, "details": error.details}})
    one_line = " ".join(error.message.split())
    sys.stderr.write(f"error: {one_line}\n")
