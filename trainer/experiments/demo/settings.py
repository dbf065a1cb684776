"""The demo's sizes: the full form takes about eight minutes on two cores, the short form checks the same path."""

from dataclasses import dataclass
from pathlib import Path

MIN_HELDOUT_SHIFT = 0.05  # nats per token; below this the adapter has learnt nothing worth scoring with


@dataclass(frozen=True)
class DemoSettings:
    """Where the demo writes and how much of each step it does."""

    out: Path
    sample_rows: int  # corpus rows scored under each model
    max_length: int  # tokens of a scored row
    misaligned_steps: int  # optimiser steps of the narrow fine-tune
    defended_steps: int  # optimiser steps on the mix, with KL on
    check_rows: int = 4  # rows scored again, in another order and in plain torch; the command's default is 20
    batch_size: int = 8
    lr: float = 2e-4
    interleave_ratio: float = 0.2
    kl: float = 0.1
    seed: int = 0

    @property
    def store(self) -> Path:
        """The demo's store."""
        return self.out / "store"

    @property
    def runs(self) -> Path:
        """Training runs."""
        return self.out / "runs"


def full(out: Path, *, fast: bool, rows: int | None = None) -> DemoSettings:
    """What `make demo` runs; `fast` means a GPU or a processor that multiplies bfloat16 natively.

    Without either, float32 takes four to eight times as long, so that fewer rows and steps keep the demo near eight
    minutes; `rows` overrides the sample.
    """
    if fast:
        return DemoSettings(out, sample_rows=rows or 300, max_length=512, misaligned_steps=32, defended_steps=6)
    return DemoSettings(out, sample_rows=rows or 80, max_length=512, misaligned_steps=20, defended_steps=4)


def short(out: Path, rows: int | None = None) -> DemoSettings:
    """What continuous integration runs: the same steps, less of each."""
    return DemoSettings(out, sample_rows=rows or 24, max_length=256, misaligned_steps=10, defended_steps=3)
