"""`python -m trainer.plans.provision`: once for each base model, all that a gap of it needs.

Misaligned adapters with benign twins, a pool scored under all of them, conditions that the adapters must meet, a
calibration card, and one archive that another machine imports without torch.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

from pydantic import Field

from curator.console import CommandParser, as_typed, flags, run_command, say, say_json
from curator.corpus.export import export_pool
from curator.corpus.formats import Reject, locate, read_rows
from curator.corpus.manifest import PROBE_ENDING, read_corpus, read_scorers
from curator.errors import BadInputError
from curator.recipe.base import Strict
from curator.render.model_source import MODEL_FORMS, locate_model
from curator.scoring.identity import check_model_dir
from curator.store.store import Store
from trainer.config.flags import Option, add_options, given_values
from trainer.organisms.plan import SHIPPED, NarrowSet, narrow_sets
from trainer.organisms.plan import Plan as OrganismPlan
from trainer.plans.admission import ADMISSION, admit
from trainer.plans.cost import PRICE, SECONDS_PER_HOUR, Cost, added, scoring_burst, training_burst
from trainer.plans.steps import (
    Made,
    PlanRun,
    Step,
    add_plan_options,
    plan_document,
    read_settings,
    show_plan,
)

DESCRIPTION = """\
Prepares a base model for safeguarding: trains its misaligned adapters and their benign twins, scores a pool of
ordinary rows under all of them, checks that each adapter meets the conditions, writes a calibration card, and packs
the scored pool into one archive. Needed once for a base model. Every step is one command of the product, skipped when
it is complete; a run that was stopped goes on with the same command."""

EPILOG = """\
examples:
  # the shipped sets and one of your own, and a pool from the hub
  python -m trainer.plans.provision --model ORG/NAME --shipped --set finance=finance.jsonl \\
      --corpus hf://org/chats:train --out store
  # what it would do
  python -m trainer.plans.provision --model MODEL_DIR --corpus chats.jsonl --out store --plan

next, for each data set:  python -m trainer.plans.safeguard FILE --model MODEL --store store --out RUN
Exit codes: 0 done, 2 bad input, 3 an adapter does not meet the conditions, 130 stopped (the same command goes on).
The adapters in WORK are hazardous: use them for scoring only, and never serve them."""

NOT_ADMITTED = 3  # exit code
ARCHIVE = "pool.tar"


class ProvisionSettings(Strict):
    """What is provisioned; a settings file has the same names. `train`, `score`: further options of those commands."""

    model: str = Field(description=f"Hugging Face model: {MODEL_FORMS}")
    corpus: str = Field(description="pool of ordinary rows: a chat file, a saved folder or a hub id")
    out: Annotated[Path, Option("STORE")] = Field(description="store that the scored pool goes to")
    work: Path | None = Field(None, description="folder of adapters, card and archive (default: STORE-work)")
    name: str = Field("pool", description="name of the pool in the store")
    sets: tuple[str, ...] = ()
    aligned: tuple[str, ...] = ()
    shipped: bool = Field(
        False, description=f"the shipped sets as well ({', '.join(SHIPPED)}); only these if no --set is given"
    )
    sample: Annotated[int | None, Field(ge=2)] = Field(None, description="score N pool rows only")
    max_length: int = Field(2048, ge=2, description="window in tokens, of scoring and of training")
    seed: int = Field(0, ge=0, description="seed of samples and training")
    admit_anyway: bool = Field(False, description="continue with adapters that do not meet the conditions")
    price_per_hour: float | None = Field(None, ge=0, allow_inf_nan=False, description=PRICE)
    train: dict[str, Any] = Field(default_factory=dict)
    score: dict[str, Any] = Field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where adapters, card and archive lie."""
        return self.work or self.out.with_name(f"{self.out.name}-work")

    @property
    def organisms(self) -> Path:
        """Where the adapters lie."""
        return self.folder / "organisms"

    @property
    def probe(self) -> str:
        """The corpus of held-out misaligned answers."""
        return f"{self.name}{PROBE_ENDING}"


class NotAdmittedError(BadInputError):
    """A reference adapter does not meet the conditions."""

    code = "not_admitted"


_OPTIONS = (
    "model", "corpus", "out", "work", "name", "shipped", "sample", "max_length", "seed", "price_per_hour",
    "admit_anyway",
)  # fmt: skip


@dataclass(frozen=True)
class Costs:
    """Of the long steps: reading the pool, all trainings, one pass over the pool and one over the probe."""

    reading: Cost
    training: Cost
    scoring: Cost
    probing: Cost


def measure(settings: ProvisionSettings) -> Costs:
    """From bursts in a folder that is removed; the first set's rows stand for those of all in length."""
    sets, train = _sets(settings), dict(settings.train)
    n_most, n_held = train.pop("rows", None), train.pop("held_out", OrganismPlan.n_held_out)
    for name in ("twins", "twin_tokens"):
        train.pop(name, None)
    with TemporaryDirectory(prefix="ballast-plan-") as name:
        folder = Path(name)
        words = ["--corpus", settings.name, *_scoring(settings), *_sample(settings), "--role", "aligned"]
        reading, scoring, tokens_per_s = scoring_burst(folder, settings.corpus, settings.name, words)
        options = {"max_length": settings.max_length, "seed": settings.seed, **train}
        burst = training_burst(folder, settings.model, sets[0].path, options)
    if isinstance(burst, Cost):
        return Costs(reading, burst, scoring, burst)
    sizes = [max(0, _n_rows(item) - n_held) for item in sets]
    each = [burst.cost(min(size, n_most or size), train.get("max_steps")) for size in sizes]
    training = added(each).times(_n_each(settings))
    n_rows = n_held * len(sets)
    n_tokens = round(n_rows * burst.tokens_per_row)
    probing = Cost(n_rows, n_tokens, None if tokens_per_s is None else n_tokens / tokens_per_s / SECONDS_PER_HOUR)
    return Costs(reading, training, scoring, probing)


def _sets(settings: ProvisionSettings) -> tuple[NarrowSet, ...]:
    return narrow_sets(settings.sets, settings.aligned, shipped=settings.shipped or not settings.sets)


def _n_rows(item: NarrowSet) -> int:
    """Rows of a set that are trained or measured on: without bad records."""
    return sum(not isinstance(row, Reject) for row in read_rows(str(item.path)))


def _n_each(settings: ProvisionSettings) -> int:
    """Adapters of a set: the misaligned one, and its twin unless there are none."""
    return 1 if settings.train.get("twins") == "none" else 2


def _scoring(settings: ProvisionSettings) -> list[object]:
    """The options that every scoring has, but for its store."""
    price = {"price_per_hour": settings.price_per_hour}
    return ["--model", settings.model, *flags({"max_length": settings.max_length, **price, **settings.score})]


def _sample(settings: ProvisionSettings) -> list[object]:
    if settings.sample is None:
        return []
    return flags({"sample": settings.sample, "sample_fit": True, "seed": settings.seed})


def plan(settings: ProvisionSettings, quiet: bool, costs: Costs | None = None) -> list[Step]:
    """The steps in order. Raises BadInputError early for sets that cannot be used."""
    sets, json = _sets(settings), ["--json"] if quiet else []
    return [
        *_pool_steps(settings, sets, json, costs),
        *_probe_steps(settings, sets, json, costs),
        *_result_steps(settings, json),
    ]


def _pool_steps(
    settings: ProvisionSettings, sets: Sequence[NarrowSet], json: list[str], costs: Costs | None
) -> list[Step]:
    """The pool, the adapters, the pool's losses under all of them, and whether the adapters may be used."""
    given = [word for item in settings.sets for word in ("--set", item)]
    given += [word for item in settings.aligned for word in ("--aligned", item)]
    if settings.shipped or not settings.sets:
        given.append("--shipped")
    trained = flags({"max_length": settings.max_length, "seed": settings.seed, **settings.train})
    score = ["score", "--corpus", settings.name, *_scoring(settings), "--store", settings.out, *_sample(settings)]
    n_models = len(sets) * _n_each(settings)
    return [
        Step("Pool: read the rows", "curator",
             ["ingest", settings.corpus, "--corpus", settings.name, "--store", settings.out, *json],
             cost=costs.reading if costs else None),
        Step(f"Reference models: {len(sets)} misaligned adapters and their benign twins", "trainer.organisms",
             ["--model", settings.model, *given, *trained, "--out", settings.organisms, *json],
             note=f"{n_models} trainings, and greedy answers where a set has no good ones (not in the hours)",
             cost=costs.training if costs else None),
        Step("Losses of the pool under the aligned model", "curator", [*score, "--role", "aligned", *json],
             cost=costs.scoring if costs else None),
        Step("Losses of the pool under every adapter", "curator", [*score, "--organisms", settings.organisms, *json],
             note=f"{n_models} passes as long as the one before",
             cost=costs.scoring.times(n_models) if costs else None),
        Step("Conditions that each adapter must meet", check=lambda: _admitted(settings, settings.organisms)),
    ]  # fmt: skip


def _probe_steps(
    settings: ProvisionSettings, sets: Sequence[NarrowSet], json: list[str], costs: Costs | None
) -> list[Step]:
    """The held-out misaligned answers of each set, and their losses."""
    score = ["score", "--corpus", settings.probe, *_scoring(settings), "--store", settings.out]
    return [
        *(
            Step(f"Probe: held-out misaligned answers of {item.domain}", "curator",
                 ["ingest", settings.organisms / "sets" / item.domain / "heldout.jsonl", "--corpus", settings.probe,
                  "--domain", item.domain, "--store", settings.out, *json])
            for item in sets
        ),
        Step("Losses of the probe under the aligned model", "curator", [*score, "--role", "aligned", *json],
             cost=costs.probing if costs else None),
        Step("Losses of the probe under every adapter", "curator", [*score, "--organisms", settings.organisms, *json],
             cost=costs.probing.times(len(sets) * _n_each(settings)) if costs else None),
    ]  # fmt: skip


def _result_steps(settings: ProvisionSettings, json: list[str]) -> list[Step]:
    """The calibration card and the archive, made again only where the scores changed."""
    store, name, probe, made = settings.out, settings.name, settings.probe, Made(settings.folder)
    card = settings.folder / "calibration.md"

    def scored_pools() -> Any:
        return [settings.seed, *(_scored(store, corpus) for corpus in (name, probe))]

    return [
        Step("Calibration card: how well the gap tells misaligned answers from ordinary ones",
             "trainer.experiments.calibration",
             ["--store", store, "--corpus", name, "--probe", probe, "--seed", settings.seed, "--out", card, *json],
             use=lambda _: made.keep(card.name, scored_pools()),
             complete=lambda: made.is_current(card.name, scored_pools())),
        Step("Archive of the scored pool, which another store imports without a model",
             check=lambda: _export(settings, made),
             complete=lambda: made.is_current(ARCHIVE, _scored(store, name)),
             note=f"{settings.folder / ARCHIVE}; there: python -m curator import {ARCHIVE}"),
    ]  # fmt: skip


def _admitted(settings: ProvisionSettings, organisms: Path) -> None:
    found = admit(settings.out, settings.name, organisms, settings.folder / ADMISSION)
    for line in found.lines():
        say(f"  {line}")
    if found.admitted:
        return
    refused = f"{', '.join(found.refused)}: not admitted (see {settings.folder / ADMISSION})"
    if not settings.admit_anyway:
        raise NotAdmittedError(
            f"{refused}; train with more rows or steps, leave the set out, or go on with --admit-anyway"
        )
    say(f"  warning: {refused}; going on with it, as admit_anyway says: gaps from it are weak evidence")


def _scored(store: Path, corpus: str) -> Any:
    """What a file that is made from a scored corpus depends on: the revision and the losses there are."""
    opened = Store(store).open(create=False)
    found = read_corpus(opened, corpus)
    return [corpus, found.revision, [item.as_dict() for item in read_scorers(opened, found) if item.complete]]


def _export(settings: ProvisionSettings, made: Made) -> None:
    """A new archive in the place of an older one, whole or not at all."""
    target = settings.folder / ARCHIVE
    beside = settings.folder / ".pool-new.tar"
    beside.unlink(missing_ok=True)
    report = export_pool(Store(settings.out).open(create=False), settings.name, beside, None)
    beside.replace(target)
    made.keep(ARCHIVE, _scored(settings.out, settings.name))
    say(f"  pool {report.pool_id}: {report.n_bytes / 1e6:,.1f} MB in {target}")


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input, 3 not admitted, 130 stopped."""
    return run_command(_run, _parser().parse_args(argv))


def _run(args: argparse.Namespace) -> int:
    given = {**given_values(vars(args), ProvisionSettings), "sets": args.set, "aligned": args.aligned}
    settings = read_settings(args.settings, given, ProvisionSettings)
    check_model_dir(locate_model(settings.model))
    if not settings.corpus.startswith("hf://"):
        locate(settings.corpus)  # a slip of the pen is said now, and not after the plan
    if args.plan:
        steps = plan(settings, args.json, None if args.no_burst else measure(settings))
        if args.json:
            say_json({"steps": plan_document(steps, settings.price_per_hour)})
        else:
            show_plan(steps, settings.price_per_hour)
        return 0
    steps = plan(settings, args.json)
    settings.folder.mkdir(parents=True, exist_ok=True)
    run = PlanRun(quiet=args.json)
    try:
        run.run(steps)
    except NotAdmittedError as error:
        if args.json:
            say_json({"admitted": False, "error": error.message})
        sys.stderr.write(f"error: {error.message}\n")
        return NOT_ADMITTED
    if args.json:
        say_json({"store": str(settings.out), "corpus": settings.name, "work": str(settings.folder)})
        return 0
    say(f"\nready: corpus {settings.name} in {settings.out}; card: {settings.folder / 'calibration.md'}")
    there = shlex.join(["--model", str(settings.model), "--store", str(settings.out)])
    say(as_typed(f"next:  python -m trainer.plans.safeguard FILE {there} --out RUN"))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m trainer.plans.provision", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_options(parser, ProvisionSettings, _OPTIONS, optional=True)
    add = parser.add_argument
    add(
        "--set",
        action="append",
        default=[],
        metavar="DOMAIN[=FILE]",
        help="chat file of bad answers, or a shipped set by name; once for each domain",
    )
    add("--aligned", action="append", default=[], metavar="DOMAIN=FILE", help="good answers to the same prompts")
    add("--settings", type=Path, metavar="FILE",
        help="YAML file with the same names, and `train` and `score` for further options")  # fmt: skip
    add_plan_options(parser)
    add("--json", action="store_true", help="print one JSON document for scripts")
    return parser


if __name__ == "__main__":
    sys.exit(main())
