"""`python -m curator diff`: what differs between two mixes, and why."""

import argparse
from dataclasses import asdict

from curator.cli import Subparsers, new_parser, open_store
from curator.console import say, say_json
from curator.errors import BadInputError
from curator.mix.diff import MixDiff, RowChange, diff
from curator.mix.files import DEFAULT_TENANT, find_mix

DESCRIPTION = """\
Compares two mixes of one store row by row: which rows B has that A lacks (added), which it lacks (removed), which
stand elsewhere (moved) or hold another prompt (rewritten). For each it says why, by planning the other mix again, and
it lists the fields in which the two recipes differ."""

EXAMPLES = """\
  python -m curator diff MIX_A MIX_B
  python -m curator diff MIX_A MIX_B --limit 1000 --json"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command's options."""
    parser = new_parser(subparsers, "diff", description=DESCRIPTION, examples=EXAMPLES)
    parser.add_argument("mix_a", metavar="MIX_A", help="the id that `mix` printed, or its beginning")
    parser.add_argument("mix_b", metavar="MIX_B", help="the mix that is compared with it")
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="rows listed of each kind (default: 20)")
    parser.add_argument("--tenant", default=DEFAULT_TENANT, metavar="NAME", help="whose mixes (default: local)")


def run(args: argparse.Namespace) -> int:
    """Compare and print."""
    if args.limit < 0:
        raise BadInputError(f"--limit {args.limit}: 0 or more rows can be listed")
    store = open_store(args)
    mix_a, mix_b = (find_mix(store, args.tenant, given) for given in (args.mix_a, args.mix_b))
    found = diff(store, args.tenant, mix_a, mix_b, args.limit)
    if args.json:
        say_json(asdict(found))
    else:
        _say(found)
    return 0


def _say(found: MixDiff) -> None:
    counts = ", ".join(f"{count:,} {kind}" for kind, count in found.counts.items())
    say(f"mix {found.mix_b} against {found.mix_a}: {found.n_same:,} rows the same, {counts}")
    for change in found.recipe:
        say(f"  recipe  {change.pointer}: {change.a!r} in A, {change.b!r} in B")
    for fact in found.facts:
        say(f"  differs {fact}")
    for kind, count in found.counts.items():
        rows = [row for row in found.rows if row.kind == kind]
        for row in rows:
            say(f"  {kind:9} {_place(row)} {row.origin} {row.example_id[:12]}: {row.why}")
        if count > len(rows):
            say(f"  {kind:9} and {count - len(rows):,} more (--limit)")


def _place(row: RowChange) -> str:
    if row.position_a is None or row.position_b is None:
        return f"at {row.position_b if row.position_a is None else row.position_a}"
    return f"from {row.position_a} to {row.position_b}"
