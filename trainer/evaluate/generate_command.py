"""`python -m trainer.evaluate generate`: answers of a model, with its gates where it has some."""

import argparse

from trainer.evaluate.gated import gates_on
from trainer.generate import command

add_parser = command.add_parser


def run(args: argparse.Namespace) -> int:
    """See trainer.generate.command."""
    return command.run(args, gates_on(args))
