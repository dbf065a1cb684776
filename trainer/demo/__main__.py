"""`python -m trainer.demo`: the whole main job on a real model and a real corpus, with the product's own commands."""

import argparse
import sys
import time
from pathlib import Path

from curator.errors import BallastError
from curator.progress import say
from trainer.demo import report, settings, steps


def main(argv: list[str] | None = None) -> int:
    """Run every step in order; 0 when all did what they must, 1 with one line on what did not, 130 on Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m trainer.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for all outputs (default: demo)")
    parser.add_argument("--short", action="store_true", help="fewer rows and steps, under OUT/short")
    options = parser.parse_args(argv)
    chosen = settings.short(options.out / "short") if options.short else settings.full(options.out)
    started = time.monotonic()
    try:
        outcome = steps.run_all(chosen, models=options.out / "models")
        path = report.write(chosen, outcome)
    except BallastError as error:
        sys.stderr.write(f"\ndemo stopped: {error}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write("\nstopped; what is finished is kept, and the same command goes on from there\n")
        return 130
    say()
    say(f"Done in {time.monotonic() - started:.0f} s. Where everything is:")
    for label, place in report.places(chosen, outcome, path):
        say(f"  {label:<22}{place}")
    say("Try next:")
    for line in report.suggestions(chosen, outcome):
        say(f"  {line}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
