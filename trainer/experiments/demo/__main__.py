"""`python -m trainer.experiments.demo`: the whole main job on a real model and corpus, with the product's commands."""

import argparse
import json
import sys
import time
from pathlib import Path

from curator.console import CommandParser, say
from curator.errors import BadInputError, BallastError
from trainer.experiments.demo import checks, report, settings, steps

MIN_ROWS = 10


def main(argv: list[str] | None = None) -> int:
    """Run every step in order; 0 when all did what they must, 1 with one line on what did not, 130 on Ctrl-C."""
    parser = CommandParser(prog="python -m trainer.experiments.demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for all outputs (default: demo)")
    parser.add_argument("--short", action="store_true", help="fewer rows and steps, under OUT/short")
    parser.add_argument("--rows", type=int, help="corpus rows to score (default: 300, fewer on slow machines)")
    parser.add_argument(
        "--expect-complete", action="store_true", help="fail when a step trained, scored or ingested anything anew"
    )
    options = parser.parse_args(argv)
    started = time.monotonic()
    try:
        chosen = _sizes(options)
        before = checks.results(chosen)
        outcome = steps.run_all(chosen, models=options.out / "models")
        path = report.write(chosen, outcome)
        checks.require_report(chosen)
        if options.expect_complete:
            checks.require_skipped(before, checks.results(chosen))
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


def _sizes(options: argparse.Namespace) -> settings.DemoSettings:
    """The demo's sizes on this machine; says so when it is a slow one."""
    if options.rows is not None and options.rows < MIN_ROWS:
        raise BadInputError(f"--rows {options.rows}: the demo needs at least {MIN_ROWS} rows for its gap")
    if options.short:
        return settings.short(options.out / "short", options.rows)
    fast = _is_fast(options.out / "machine.json")
    chosen = settings.full(options.out, fast=fast, rows=options.rows)
    if not fast and options.rows is None:
        say(
            f"No GPU and no native bfloat16 here: scoring {chosen.sample_rows} rows instead of 300 and training fewer"
            " steps to stay near eight minutes. `python -m trainer.experiments.demo --rows 300` takes longer."
        )
    return chosen


def _is_fast(remembered: Path) -> bool:
    """Whether this machine has a GPU or native bfloat16; remembered, since importing torch takes seconds."""
    if not remembered.exists():
        from curator.scoring.engines.torch_model import resolve_device, resolve_dtype

        remembered.parent.mkdir(parents=True, exist_ok=True)
        remembered.write_text(json.dumps({"fast": resolve_dtype("auto", resolve_device("auto")) == "bfloat16"}) + "\n")
    return bool(json.loads(remembered.read_text())["fast"])


if __name__ == "__main__":
    sys.exit(main())
