"""Options of `python -m trainer.sft` about how a run is kept, resumed, watched and spread; each described once."""

import argparse
from pathlib import Path

from trainer.runfolder import Resume

NO_CACHE = "none"


def add_run_options(parser: argparse.ArgumentParser) -> None:
    """Checkpoints, resuming, render cache, trackers, other orders, full fine-tuning and 4-bit bases."""
    group = parser.add_argument_group("checkpoints, cache and trackers")
    group.add_argument(
        "--save-steps", type=int, metavar="N", help="write a checkpoint every N steps (default: only on Ctrl-C)"
    )
    group.add_argument("--keep-checkpoints", type=int, metavar="N", help="keep the newest N (default: 2)")
    group.add_argument(
        "--resume", nargs="?", const="newest", metavar="STEP",
        help="go on from a checkpoint in --out, the newest or that of STEP, and fail if there is none; without this, "
        "an interrupted run goes on from its newest checkpoint if it has one",
    )  # fmt: skip
    group.add_argument(
        "--cache", metavar="DIR",
        help=f"folder of rendered rows, shared by runs (default: .rendered beside --out); {NO_CACHE}: keep none",
    )  # fmt: skip
    group.add_argument(
        "--report-to", type=lambda text: tuple(text.split(",")), metavar="NAMES",
        help="send metrics to trackers that are installed, for example trackio or tensorboard",
    )  # fmt: skip
    group = parser.add_argument_group("what is trained, and in which order")
    group.add_argument(
        "--full", action="store_true", default=None,
        help="train every weight instead of an adapter; a defence that compares with the model before training then "
        "needs a second, frozen copy of it",
    )  # fmt: skip
    group.add_argument(
        "--four-bit", action="store_true", default=None,
        help="hold the frozen model in 4 bits (NF4); needs bitsandbytes",
    )  # fmt: skip
    group.add_argument(
        "--reorder", choices=("shuffle", "group_by_length"),
        help="give up the order of the rows, by name: shuffle every epoch, or put rows of like length together",
    )  # fmt: skip
    for flag, reason in _REFUSED.items():
        group.add_argument(flag, action=_Refuse, nargs=0, reason=reason, help=argparse.SUPPRESS)


def resume_of(value: str | None, parser: argparse.ArgumentParser) -> Resume | None:
    """What `--resume` asks for."""
    if value is None:
        return None
    if value == "newest":
        return Resume()
    if not value.isdigit():
        parser.error(f"--resume takes the step of a checkpoint, not {value!r}")
    return Resume(int(value))


def cache_folder(cache: Path | None, out: Path) -> Path | None:
    """Where rendered rows are kept; None for nowhere."""
    if cache is None:
        return out.parent / ".rendered"
    return None if str(cache) == NO_CACHE else cache


# Names that other trainers have: an error that says why is better than "unrecognized arguments".
_REFUSED = {
    "--packing": "packing puts several rows into one and so voids the order of a mix; it is not offered",
    "--group-by-length": "grouping rows by length voids the order of a mix: ask for it as --reorder group_by_length",
    "--shuffle": "shuffling voids the order of a mix: ask for it as --reorder shuffle",
}


class _Refuse(argparse.Action):
    def __init__(self, *, reason: str, **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.reason = reason

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.error(self.reason)
