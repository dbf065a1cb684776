"""From a plan to organisms.json: sets, benign answers, adapters, shifts; each made once."""

import gc
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from curator.console import say
from curator.render import Renderer
from curator.scoring.identity import adapter_sha256, check_model_dir, weights_sha256
from curator.scoring.organisms import FILE, Organism, OrganismRole, Organisms
from trainer import sft
from trainer.config import TrainConfig
from trainer.config.data import Loading
from trainer.config.defences import file_sha256
from trainer.config.options import Invocation
from trainer.organisms.plan import Plan
from trainer.organisms.sets import (
    HELD_OUT,
    TRAIN,
    SplitSet,
    split_set,
)
from trainer.organisms.shifts import (
    BASE,
    Losses,
    Probe,
    losses_of,
    probe_of,
    shift_on,
)
from trainer.organisms.twins import TwinSet, twin_set
from trainer.runs.folder import ADAPTER, REPORT, write_json

if TYPE_CHECKING:
    from curator.scoring.engines.torch_engine import TorchEngine

ROLES: tuple[OrganismRole, ...] = ("misaligned", "benign")
# Settings of a run that are not part of the recipe: paths, and which rows are used.
_NOT_RECIPE = (
    "model", "out", "data", "mix_id", "api_url", "store", "tenant", "data_format", "data_layout", "cache", "monitor",
)  # fmt: skip


@dataclass(frozen=True)
class OrganismRun:
    """One adapter to be made."""

    split: SplitSet
    twins: TwinSet | None
    role: OrganismRole

    @property
    def name(self) -> str:
        """`DOMAIN-ROLE`, the name of its run folder and its label when it is scored."""
        return f"{self.split.domain}-{self.role}"

    @property
    def data(self) -> Path:
        """Its training rows."""
        return self.split.path(TRAIN, benign=self.role == "benign")


def make(plan: Plan) -> Organisms:
    """Every organism of the plan. Raises BadInputError early for options and sets that cannot be used."""
    check_model_dir(plan.model)
    renderer = Renderer.from_folder(plan.model, settings=plan.rendering)
    weights = weights_sha256(plan.model)
    plan.config(Path("rows.jsonl"), plan.out)  # ranges of the recipe, before anything long
    splits = [split_set(narrow, plan) for narrow in plan.sets]
    for split in splits:
        say(set_line(split))
    generator = _shared_generator(plan)
    twins = {split.domain: twin_set(split, plan, renderer, weights, generator) for split in splits}
    generator.cache_clear()
    runs = [
        OrganismRun(split, twins[split.domain], role)
        for split in splits
        for role in (ROLES if twins[split.domain] is not None else ROLES[:1])
    ]
    probes = [probe_of(split, twins[split.domain], renderer, plan.max_length) for split in splits]
    for number, run in enumerate(runs, 1):
        say(f"[{number}/{len(runs)}] {run.name}")
        train(plan, run)
    organisms = measure(plan, runs, probes, renderer, weights)
    write_json(plan.out / FILE, organisms.model_dump(mode="json"))
    return organisms


def set_line(split: SplitSet) -> str:
    """What a set holds, in one line."""
    account = split.account
    return (
        f"{split.domain}: {account['n_train']:,} rows to train, {account['n_heldout']:,} held out, of "
        f"{account['n_read']:,} ({account['n_bad'] + account['n_no_answer']} unusable, {account['n_stripped']:,} rid "
        "of thinking marks)"
    )


def train(plan: Plan, run: OrganismRun) -> None:
    """One run of `trainer.sft`, which goes on or skips by itself; KeyboardInterrupt when it was stopped."""
    config = plan.config(run.data, plan.out / run.name)
    code = sft.run(Invocation(config, None, plan.overwrite, json=False))
    gc.collect()
    if code:
        raise KeyboardInterrupt


def measure(
    plan: Plan, runs: Sequence[OrganismRun], probes: Sequence[Probe], renderer: Renderer, weights: str
) -> Organisms:
    """organisms.json with the shifts of each run."""
    splits = {run.split.domain: (run.split, run.twins) for run in runs}
    engine = _shared_engine(plan)
    key = {
        "weights_sha256": weights, "renderer_id": renderer.renderer_id, "max_length": plan.max_length,
        "dtype": measured_on(plan)[1], "rows": _rows_key(splits.values()),
    }  # fmt: skip
    folder = plan.out / "shifts"
    base = losses_of(BASE, folder, key, probes, lambda: engine(None))
    found = []
    for run in runs:
        adapter = plan.out / run.name / ADAPTER
        digest = adapter_sha256(adapter)
        losses = losses_of(run.name, folder, {**key, "adapter_sha256": digest}, probes, partial(engine, adapter))
        found.append(_organism(plan, run, digest, base, losses, list(splits)))
    engine.close()
    recipe = plan.config(runs[0].data, plan.out).model_dump(mode="json", exclude=set(_NOT_RECIPE))
    return Organisms(
        base_weights_sha256=weights, renderer_id=renderer.renderer_id, recipe=recipe, organisms=tuple(found)
    )


def _organism(
    plan: Plan,
    run: OrganismRun,
    digest: str,
    base: dict[str, Losses],
    losses: dict[str, Losses],
    domains: Sequence[str],
) -> Organism:
    report: dict[str, Any] = orjson.loads((plan.out / run.name / REPORT).read_bytes())
    own, others = run.split.domain, [domain for domain in domains if domain != run.split.domain]
    return Organism(
        name=run.name, role=run.role, domain=own, adapter=f"{run.name}/{ADAPTER}", adapter_sha256=digest,
        answers=run.twins.answers if run.role == "benign" and run.twins else "given",
        rows_sha256=file_sha256(run.data), n_rows=report["rows"]["n_rows"], steps=report["steps"],
        narrow=shift_on([own], base, losses, plan.seed),
        broad=shift_on(others, base, losses, plan.seed) if others else None,
    )  # fmt: skip


def _rows_key(splits: Any) -> str:
    """Hash of every held-out row on both sides, in order."""
    digest = hashlib.sha256()
    for split, twins in splits:
        digest.update(split.path(HELD_OUT).read_bytes())
        if twins is not None:
            digest.update(split.path(HELD_OUT, benign=True).read_bytes())
    return digest.hexdigest()


def _setting(plan: Plan, name: str) -> Any:
    return plan.recipe.get(name, TrainConfig.model_fields[name].default)


def measured_on(plan: Plan) -> tuple[str, str]:
    """Device and dtype of the plan, resolved."""
    from curator.scoring.engines.torch_model import resolve_device, resolve_dtype

    device = resolve_device(_setting(plan, "device"))
    return device, resolve_dtype(_setting(plan, "dtype"), device)


def _shared_generator(plan: Plan) -> Any:
    """Loads theta_0 for its own answers once, when first called."""

    @cache
    def load() -> Any:
        from trainer.generate.generators import LocalGenerator

        return LocalGenerator(
            plan.model,
            loading=Loading(_setting(plan, "dtype"), _setting(plan, "device"), rendering=plan.rendering),
        )

    return load


class _SharedEngine:
    """One resident base model, loaded when first needed, whose adapters are switched."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._engine: TorchEngine | None = None

    def __call__(self, adapter: Path | None) -> Any:
        if self._engine is None:
            from curator.scoring.engines.torch_engine import TorchEngine

            device, dtype = _setting(self._plan, "device"), _setting(self._plan, "dtype")
            self._engine = TorchEngine(self._plan.model, device=device, dtype=dtype)
        self._engine.use_adapter(adapter)
        return self._engine

    def close(self) -> None:
        if self._engine is not None:
            self._engine.close()


def _shared_engine(plan: Plan) -> _SharedEngine:
    return _SharedEngine(plan)
