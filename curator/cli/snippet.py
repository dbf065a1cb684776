"""`python -m curator snippet`: a mix for axolotl, datasets, LLaMA-Factory, TRL or unsloth."""

import argparse
from pathlib import Path

from curator.cli import Subparsers, new_parser, open_store
from curator.console import say, say_json
from curator.mix.cards import CARD_FILES
from curator.mix.files import DEFAULT_TENANT, find_mix
from curator.mix.identity import read_manifest
from curator.mix.snippets import (
    DATA_FILE,
    KINDS,
    mix_shape,
    snippet,
    write_snippet,
)

DESCRIPTION = """\
Prints the settings that make another trainer read a mix in its order: shuffling, packing, cutting and
deduplication off. With --out it writes them to a folder, beside the mix's messages as train.jsonl, a dataset card
(README.md: `datasets` loads the folder), Croissant metadata and a CycloneDX ML-BOM. Settings of the model and the
optimiser are yours to add."""

EXAMPLES = """\
  python -m curator snippet 0123456789abcdef0123456789abcdef trl
  python -m curator snippet 0123456789abcdef0123456789abcdef axolotl --out axolotl-mix"""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command's options."""
    parser = new_parser(subparsers, "snippet", description=DESCRIPTION, examples=EXAMPLES)
    parser.add_argument("mix_id", metavar="MIX_ID", help="the id that `mix` printed, or its beginning")
    parser.add_argument("kind", choices=KINDS, help="the trainer, or datasets")
    parser.add_argument("--out", metavar="DIR", help=f"folder for the settings and {DATA_FILE} (default: print only)")
    parser.add_argument("--tenant", default=DEFAULT_TENANT, metavar="NAME", help="tenant of the mix (default: local)")


def run(args: argparse.Namespace) -> int:
    """Print the settings, or write them with the data."""
    store = open_store(args)
    args.mix_id = find_mix(store, args.tenant, args.mix_id)
    if args.out is None:
        manifest = read_manifest(store, args.tenant, args.mix_id)
        made = snippet(manifest, args.kind, mix_shape(store, args.tenant, args.mix_id))
    else:
        made = write_snippet(store, args.tenant, args.mix_id, args.kind, Path(args.out))
    if args.json:
        say_json({"main": made.main, "files": made.files, "out": args.out})
    elif args.out is None:
        say(
            "\n".join(
                f"# {name}\n{text}" if len(made.files) > 1 else text for name, text in made.files.items()
            ).rstrip()
        )
    else:
        say(f"wrote {', '.join([*made.files, DATA_FILE, *CARD_FILES])} to {args.out}: start from {made.main}")
    return 0
