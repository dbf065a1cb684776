"""`python -m curator remove`: take a scorer out of a store."""

import argparse

from curator.cli import Subparsers, new_parser, open_store
from curator.console import as_typed, say, say_json
from curator.corpus.manifest import MIN_PREFIX, read_corpus, read_scorers
from curator.errors import BadInputError, MissingError

DESCRIPTION = """\
Removes a scorer with its losses from a corpus: one that was made by mistake, or that no recipe uses any more. Mixes
that were built from it stay as they are, but the same request cannot be built again."""

EXAMPLES = """\
  python -m curator remove --corpus chats --scorer 0123456789ab
  python -m curator remove --corpus chats --scorer bad-finance"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command's options."""
    parser = new_parser(subparsers, "remove", description=DESCRIPTION, examples=EXAMPLES)
    parser.add_argument("--corpus", required=True, metavar="NAME", help="the scored corpus")
    parser.add_argument(
        "--scorer", required=True, metavar="ID", help="the scorer's label, its id, or at least 4 digits of it"
    )


def run(args: argparse.Namespace) -> int:
    """Find the one scorer that is meant, and remove it."""
    store = open_store(args)
    known = read_scorers(store, read_corpus(store, args.corpus))
    found = [item for item in known if args.scorer == item.label or _begins(item.scorer_id, args.scorer)]
    names = ", ".join(item.shown for item in known) or "none"
    if not found:
        raise MissingError(f"corpus {args.corpus} has no scorer {args.scorer!r}; there are: {names}")
    if len(found) > 1:
        raise BadInputError(f"{args.scorer!r} names {len(found)} scorers: {', '.join(item.shown for item in found)}")
    (scorer,) = found
    folder = f"scores/{args.corpus}/{scorer.scorer_id}"
    with store.lock(folder):
        store.delete(f"{folder}/scorer.json")  # first: what is left after a crash is not a scorer any more
    store.delete(folder)
    if args.json:
        say_json({"removed": scorer.scorer_id, "label": scorer.label, "n_rows": scorer.n_rows})
    else:
        say(f"removed {scorer.shown}: {scorer.n_rows:,} rows of losses")
        say(as_typed("next: python -m curator status"))
    return 0


def _begins(scorer_id: str, given: str) -> bool:
    return len(given) >= MIN_PREFIX and scorer_id.startswith(given)
