"""`python -m curator COMMAND`: read, score, mix, query and verify from the command line."""

import sys
from collections.abc import Sequence
from importlib import import_module
from keyword import iskeyword

from curator.cli import COMMANDS
from curator.console import STOPPED, CommandHelp, CommandParser, product_version, run_command

DESCRIPTION = """\
Scores an instruct corpus by perplexity gap (how much likelier an aligned model finds an answer
than models made misaligned on purpose) and mixes its safest rows into fine-tuning data."""

EPILOG = """\
the usual order:
  python -m curator ingest chats.jsonl --corpus chats
  python -m curator score --corpus chats --model MODEL_DIR --role aligned
  python -m curator score --corpus chats --model MODEL_DIR --adapter DIR --role misaligned --domain finance
  python -m curator mix task.jsonl --corpus chats
  python -m curator sql "select * from gap where complete limit 5"

`python -m curator COMMAND --help` explains one command.
Exit codes: 0 done, 2 bad input (one line says why), 130 stopped by Ctrl-C."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code (2 on input that cannot be used)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    chosen = arguments[0] if arguments and arguments[0] in COMMANDS else None
    parser = CommandParser(
        prog="python -m curator",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=CommandHelp,
    )
    parser.add_argument("--version", action="version", version=f"ballast {product_version()}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        if name != chosen:  # the others are listed, not imported: --help stays quick
            subparsers.add_parser(name, help=summary)
    if chosen is None:
        parser.parse_args(arguments)
        parser.print_help()
        return 0
    try:  # libraries take seconds to load on a busy machine
        module = import_module(f"curator.cli.{chosen.replace('-', '_')}{'_' if iskeyword(chosen) else ''}")
    except KeyboardInterrupt:
        sys.stderr.write(f"{STOPPED}\n")
        return 130
    module.add_parser(subparsers)
    return run_command(module.run, parser.parse_args(arguments))


if __name__ == "__main__":
    sys.exit(main())
