"""What the long steps of a plan would take, before any of them runs: rows, tokens, hours and memory.

Hours come from bursts: the product's own commands, in a folder that is removed. A burst that fails leaves the figures
out and says why. Prices are hours times what an hour of the machine costs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import orjson

from curator.console import flags
from trainer.plans.commands import CommandError, Commands
from trainer.runs.folder import CONFIG, METRICS

BURST_STEPS = 3  # of training; the first one warms up and does not count
SECONDS_PER_HOUR = 3600.0
PRICE = "price per hour of this machine; --plan then prints the price of each step"  # the setting of both plans


@dataclass(frozen=True)
class Cost:
    """One step's; null where it was not measured. `n_tokens` counts tokens that a model reads, `memory_bytes` is the
    peak: of the process that scored, of a training by estimate (trainer.loop.memory). `why` says what is missing."""

    n_rows: int | None = None
    n_tokens: int | None = None
    hours: float | None = None
    memory_bytes: int | None = None
    why: str | None = None

    def times(self, n: int) -> Self:
        """The same done `n` times, one after the other."""
        return replace(
            self,
            n_rows=None if self.n_rows is None else n * self.n_rows,
            n_tokens=None if self.n_tokens is None else n * self.n_tokens,
            hours=None if self.hours is None else n * self.hours,
        )

    def line(self, price_per_hour: float | None) -> str:
        """In words."""
        parts = [f"{n:,} {name}" for name, n in (("rows", self.n_rows), ("tokens", self.n_tokens)) if n is not None]
        if self.hours is not None:
            parts.append(f"{self.hours:.3g} hours")
            parts += [] if price_per_hour is None else [f"price {self.hours * price_per_hour:.2f}"]
        if self.memory_bytes is not None:
            parts.append(f"memory {self.memory_bytes / 2**30:.1f} GiB")
        return ", ".join(parts + ([] if self.why is None else [self.why]))

    def document(self, price_per_hour: float | None) -> dict[str, Any]:
        """Plain values for JSON."""
        priced = None if self.hours is None or price_per_hour is None else self.hours * price_per_hour
        return {**asdict(self), "price": priced}


def added(costs: Sequence[Cost]) -> Cost:
    """Measured costs one after the other, and the largest memory."""
    hours = sum(item.hours or 0.0 for item in costs)
    memory = max((item.memory_bytes for item in costs if item.memory_bytes is not None), default=None)
    return Cost(sum(item.n_rows or 0 for item in costs), sum(item.n_tokens or 0 for item in costs), hours, memory)


@dataclass(frozen=True)
class TrainingBurst:
    """A few steps of a training: seconds before, after and in one, tokens, the whole data set's rows, and memory.

    `config` is the run's configuration, from which the steps of a whole run follow.
    """

    seconds_around: float  # loading and saving: all of the command but its steps
    seconds_per_step: float
    tokens_per_row: float
    n_rows: int
    config: Mapping[str, Any]
    memory_bytes: int | None

    def cost(self, n_rows: int, max_steps: int | None) -> Cost:
        """A whole training on `n_rows` rows of this kind."""
        from trainer.config import TrainConfig
        from trainer.loop.fit import planned_steps

        config = TrainConfig.model_validate({**self.config, "max_steps": max_steps})
        steps = planned_steps(config, n_rows)
        read = min(config.epochs * n_rows, steps * config.batch_size * config.grad_accum)
        hours = (self.seconds_around + steps * self.seconds_per_step) / SECONDS_PER_HOUR
        return Cost(read, round(read * self.tokens_per_row), hours, self.memory_bytes)


def scoring_burst(folder: Path, source: str, name: str, words: Sequence[object]) -> tuple[Cost, Cost, float | None]:
    """Reading the pool, one pass over it, and tokens a second, from a store in `folder`."""
    runner, store = Commands(log=folder / "log"), folder / "store"
    try:
        report, spent = runner.run("curator", "ingest", source, "--corpus", name, "--store", store, "--json")
    except CommandError as error:
        failed = Cost(why=f"not measured: {error.message}")
        return failed, failed, None
    reading = Cost(report["n_examples"], hours=spent.wall_s / SECONDS_PER_HOUR)
    try:
        found, spent = runner.run("curator", "score", *words, "--store", store, "--dry-run", "--json")
    except CommandError as error:
        return reading, Cost(why=f"not measured: {error.message}"), None
    n_tokens = found["n_tokens"] + found["n_tokens_checked"]
    scoring = Cost(found["n_rows_to_score"], n_tokens, found["hours"], round(spent.peak_mib * 2**20))
    return reading, scoring, found["tokens_per_s"]


def training_burst(folder: Path, model: str, data: str | Path, options: Mapping[str, Any]) -> TrainingBurst | Cost:
    """A few steps on a data set under options of `trainer.sft`; why there are none where that failed."""
    out = folder / "train"
    steps = min(BURST_STEPS, options.get("max_steps") or BURST_STEPS)
    words = ["--model", model, "--data", data, *flags({**options, "max_steps": steps}), "--out", out, "--json"]
    try:
        _, spent = Commands(log=folder / "log").run("trainer.sft", *words)
    except CommandError as error:
        return Cost(why=f"not measured: {error.message}")
    lines = [orjson.loads(line) for line in (out / METRICS).read_bytes().splitlines()]
    timed = lines[1:] or lines
    record = orjson.loads((out / CONFIG).read_bytes())
    needed = record["resolved"]["memory"]["estimate_bytes"]
    content = record["content"]
    around_s = max(spent.wall_s - sum(line["seconds"] for line in lines), 0.0)
    return TrainingBurst(
        around_s, sum(line["seconds"] for line in timed) / len(timed), content["n_tokens"] / content["n_rows"],
        content["n_rows"], record["config"], None if needed is None else needed["total"],
    )  # fmt: skip
