"""Whether a training run fits the device: said before the weights load, and what would fit when memory runs out.

`forecast` holds the estimate (trainer.loop.memory) against the free memory and switches gradient checkpointing on where
nobody decided about it and the run does not fit otherwise; it refuses nothing. `naming_memory` turns an out-of-memory
error of torch, Python or the system into one line.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from curator.errors import BallastError
from trainer.config import TrainConfig
from trainer.data.rows import PreparedRows
from trainer.loop.memory import GIB, DecoderShape, Estimate, Work, estimate
from trainer.runs.checkpoints import complete_checkpoints
from trainer.runs.device import free_bytes
from trainer.runs.report import Warned

HEADROOM = 0.9  # of the free memory, what settings may need that are proposed after memory ran out
LEAST_LENGTH = 64  # tokens; no shorter rows are proposed
# What torch, its libraries and the C++ runtime say, beside the types of their errors.
_SIGNS = (
    "out of memory", "can't allocate memory", "cannot allocate memory", "bad_alloc", "alloc_failed",
    "could not create a primitive", "could not create a memory", "unable to mmap",
)  # fmt: skip


class OutOfMemoryError(BallastError, MemoryError):
    """Memory ran out; the message names settings that would fit."""

    code = "out_of_memory"


@dataclass(frozen=True)
class Forecast:
    """What a run needs and has, in bytes. `shape` is None where config.json does not say enough for an estimate, and
    `available` where the system does not say what is free. `chosen`: gradient checkpointing was left to this module,
    which turned it on."""

    config: TrainConfig  # with gradient checkpointing decided
    device: str
    shape: DecoderShape | None
    work: Work
    available: int | None
    chosen: bool = False

    @property
    def estimate(self) -> Estimate | None:
        """The peak by part."""
        return None if self.shape is None else estimate(self.shape, self.config, self.work)

    @property
    def fits(self) -> bool:
        """False where the estimate is larger than what is free."""
        needed = self.estimate
        return needed is None or self.available is None or needed.total <= self.available

    def with_settings(self, **changes: Any) -> Self:
        """The same run under other settings (batch_size, grad_accum, max_length, gradient_checkpointing)."""
        config = self.config.model_copy(update=changes)
        work = replace(
            self.work,
            n_rows=config.batch_size,
            n_tokens=min(self.work.n_tokens, config.max_length),
            n_labelled=min(self.work.n_labelled, config.max_length),
            checkpointing=bool(config.gradient_checkpointing),
        )
        return replace(self, config=config, work=work)

    def as_dict(self) -> dict[str, Any]:
        """For config.json and report.json; null for what is not known."""
        needed = self.estimate
        return {
            "estimate_bytes": None if needed is None else needed.as_dict(),
            "available_bytes": self.available,
            "gradient_checkpointing": bool(self.config.gradient_checkpointing),
            "checkpointing_chosen": self.chosen,
        }

    def line(self) -> str:
        """What is said before the weights load."""
        needed = self.estimate
        if needed is None:
            return "memory: no estimate, since config.json does not say how large the model is"
        free = "" if self.available is None else f" of {gib(self.available)} free on {self.device}"
        parts = {
            "weights": needed.weights,
            "adapter, gradients and optimiser": needed.adapter + needed.gradients + needed.optimiser,
            "activations": needed.activations,
            "working": needed.working,
        }
        told = ", ".join(f"{name} {gib(n_bytes)}" for name, n_bytes in parts.items())
        if needed.defences:
            told += "; of it " + ", ".join(f"{name} {gib(n_bytes)}" for name, n_bytes in needed.defences.items())
        line = f"memory: about {gib(needed.total)}{free} ({told})"
        if not self.chosen:
            return line
        without = self.with_settings(gradient_checkpointing=False).estimate
        assert without is not None
        return (
            f"{line}; gradient checkpointing is on, since without it {gib(without.total)} are needed "
            "(--no-gradient-checkpointing keeps it off)"
        )

    def warnings(self) -> list[Warned]:
        """One where the run may not fit."""
        needed = self.estimate
        if needed is None or self.fits:
            return []
        text = (
            f"training may run out of memory: about {gib(needed.total)} by the estimate, {gib(self.available or 0)} "
            f"free on {self.device}{_proposal(self)}"
        )
        return [Warned("memory_tight", text)]


def forecast(config: TrainConfig, prepared: PreparedRows | None, device: str, dtype: str) -> Forecast:
    """The run's need, with gradient checkpointing decided where the settings leave it open.

    Without rows (None) each is taken for as long as `max_length`.
    """
    decided = config.model_copy(update={"gradient_checkpointing": bool(config.gradient_checkpointing)})
    found = Forecast(
        decided, device, DecoderShape.of(config.model), Work.of(decided, prepared, dtype, device), free_bytes(device)
    )
    if config.gradient_checkpointing is None and not found.fits:
        return replace(found.with_settings(gradient_checkpointing=True), chosen=True)
    return found


def proposal(ahead: Forecast, budget: float) -> Forecast | None:
    """The mildest change of settings whose estimate is within `budget` bytes; None when there is none.

    First gradient checkpointing, then fewer rows at a time in more micro-batches (the step stays the same), then
    shorter rows.
    """
    config = ahead.config
    n_rows, n_step = config.batch_size, config.batch_size * config.grad_accum
    sizes = [size for size in range(n_rows, 0, -1) if n_step % size == 0]
    changes: list[dict[str, Any]] = [{"batch_size": size, "grad_accum": n_step // size} for size in sizes]
    length = ahead.work.n_tokens // 2
    while length >= LEAST_LENGTH:
        changes.append({"batch_size": 1, "grad_accum": n_step, "max_length": length})
        length //= 2
    for change in changes:
        found = ahead.with_settings(gradient_checkpointing=True, **change)
        needed = found.estimate
        if found.config != config and needed is not None and needed.total <= budget:
            return found
    return None


@contextmanager
def naming_memory(ahead: Forecast) -> Iterator[None]:
    """Raise OutOfMemoryError, with the settings that would fit, for every way in which memory runs out in the block."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(_out_of_memory(ahead)) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: by its type, errno or words."""
    if isinstance(error, BallastError):
        return False
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    words = str(error).lower()
    return isinstance(error, MemoryError) or any(sign in words for sign in _SIGNS)


def gib(n_bytes: int) -> str:
    """Bytes in GiB, or in MiB below one."""
    return f"{n_bytes / GIB:,.1f} GiB" if n_bytes >= GIB else f"{n_bytes / 2**20:,.0f} MiB"


def flags_of(before: TrainConfig, after: TrainConfig) -> str:
    """The options of `trainer.sft` that make one of the other."""
    found = [] if before.gradient_checkpointing == after.gradient_checkpointing else ["--gradient-checkpointing"]
    for name in ("batch_size", "grad_accum", "max_length"):
        if getattr(before, name) != getattr(after, name):
            found.append(f"--{name.replace('_', '-')} {getattr(after, name)}")
    return " ".join(found)


def _out_of_memory(ahead: Forecast) -> str:
    needed = ahead.estimate
    has = "" if ahead.available is None else f", of {gib(ahead.available)} that were free"
    told = "" if needed is None else f": these settings need about {gib(needed.total)} by the estimate{has}"
    return f"out of memory on {ahead.device}{told}{_proposal(ahead)}{_kept(ahead.config.out)}"


def _proposal(ahead: Forecast) -> str:
    needed = ahead.estimate
    if needed is None:
        return (
            "; take --gradient-checkpointing, a smaller --batch-size with more --grad-accum, or a shorter --max-length"
        )
    # It ran out although the estimate is smaller than what was free, so more is needed than estimated: by this factor
    # at least, for other settings as well.
    available = needed.total if ahead.available is None else ahead.available
    scale = max(1.0, available / needed.total)
    found = proposal(ahead, HEADROOM * available / scale)
    if found is not None and found.estimate is not None:
        return f"; these would fit: {flags_of(ahead.config, found.config)} (about {gib(found.estimate.total)})"
    least = ahead.with_settings(
        gradient_checkpointing=True, batch_size=1, max_length=min(LEAST_LENGTH, ahead.work.n_tokens)
    ).estimate
    assert least is not None
    return (
        f"; one row of {LEAST_LENGTH} tokens with --gradient-checkpointing needs about {gib(least.total)}: take a "
        "larger device, a smaller model or --four-bit"
    )


def _kept(out: Path) -> str:
    newest = max((checkpoint.step for checkpoint in complete_checkpoints(out)), default=None)
    if newest is None:
        return ""
    return (
        f"; the checkpoint of step {newest} is kept: the same command goes on from it, also with "
        "--gradient-checkpointing, while other settings start anew"
    )
