"""`python -m curator verify`: a stored mix against its manifest."""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from curator.cli import Subparsers, new_parser, open_store
from curator.console import say, say_json
from curator.errors import IntegrityError
from curator.mix.files import DEFAULT_TENANT, find_mix
from curator.mix.sign import check_signature
from curator.mix.verify import verify

DESCRIPTION = """\
Hashes a mix's file and rows again and compares them with its manifest: the mix id, every example id, the task rows
in their order, the ratio and the place of every row. Exits with 2 and lists what differs."""

EXAMPLES = """\
  python -m curator verify 0123456789abcdef0123456789abcdef
  python -m curator verify 0123456789abcdef0123456789abcdef --key provider.pub.pem"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command's options."""
    parser = new_parser(subparsers, "verify", description=DESCRIPTION, examples=EXAMPLES)
    parser.add_argument("mix_id", metavar="MIX_ID", help="the id that `mix` printed, or its beginning")
    parser.add_argument("--key", type=Path, metavar="PEM", help="also check the signature against this public key")
    parser.add_argument("--tenant", default=DEFAULT_TENANT, metavar="NAME", help="tenant of the mix (default: local)")


def run(args: argparse.Namespace) -> int:
    """Verify and say what was compared."""
    store = open_store(args)
    try:
        args.mix_id = find_mix(store, args.tenant, args.mix_id)
        report = verify(store, args.tenant, args.mix_id)
        signature = None if args.key is None else check_signature(store, args.tenant, args.mix_id, args.key)
    except IntegrityError as error:
        if not args.json:
            sys.stderr.writelines(f"  differs: {item}\n" for item in error.details)
        raise
    if args.json:
        say_json({**asdict(report), "signature": None if signature is None else signature.model_dump()})
        return 0
    say(f"mix {report.mix_id} is what its manifest says: {report.n_rows:,} rows, {report.n_safe:,} of them safe")
    for check in report.checks:
        say(f"  same: {check}")
    if signature is not None:
        say(f"  same: the signature of {args.key.name} over the manifest")
    say(f"rows_sha256 {report.rows_sha256}")
    return 0
