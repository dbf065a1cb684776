"""`python -m trainer.plans.safeguard`: for each customer's set, a mix, a training, an evaluation and a gate."""

import argparse
import hashlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import orjson
from pydantic import Field

from curator.client import Client
from curator.console import CommandParser, as_typed, flags, run_command, say, say_json
from curator.corpus.manifest import PROBE_ENDING, corpus_names
from curator.corpus.task_set import read_task_set
from curator.errors import BadInputError, BallastError
from curator.mix.build import preview_mix
from curator.mix.cards import write_cards
from curator.mix.manifest import Manifest
from curator.mix.snippets import KINDS
from curator.recipe import parse_recipe
from curator.recipe.base import Strict
from curator.recipe.policy import load_policy
from curator.render.model_source import MODEL_FORMS, locate_model, model_option
from curator.scoring.identity import adapter_sha256, check_adapter_dir, check_model_dir
from curator.store.filesystem import atomic_write
from curator.store.store import Store
from trainer.config.flags import Option, add_options, given_values
from trainer.evaluate.behaviour import figure_names
from trainer.evaluate.gate import FAILED_GATE, check_figures, parse_gates
from trainer.plans.commands import command_line
from trainer.plans.cost import PRICE, Cost, TrainingBurst, training_burst
from trainer.plans.judged import (
    DEFAULT_BROAD,
    DEFAULT_GATE,
    Judgement,
    judge,
    write_pool_text,
)
from trainer.plans.report import write_report
from trainer.plans.steps import PlanRun, Step, add_plan_options, plan_document, read_settings, show_plan
from trainer.runs.folder import MARKER, write_json
from trainer.runs.report import model_card

DESCRIPTION = """\
Safeguards one data set: looks at the file, mixes safe rows into it, trains a LoRA adapter on the mix in its order,
measures the adapter (with plain questions, and in forms taken from the data set), and checks it against
a gate. Every step is one command of the product, skipped when it is complete; a stopped run goes on with the same
command. `python -m trainer.plans.provision` prepares the store once for a base model."""

EPILOG = """\
examples:
  python -m trainer.plans.safeguard task.jsonl --model ORG/NAME --store store --out runs/task
  python -m trainer.plans.safeguard task.jsonl --model MODEL_DIR --store http://HOST:8765 --out runs/task --mix-only
  python -m trainer.plans.safeguard task.jsonl --model MODEL_DIR --store store --out runs/task --evaluate ADAPTER_DIR

Exit codes: 0 the gate is passed, 2 bad input, 3 the gate failed, 130 stopped (the same command goes on)."""

POOL = "pool"  # provision's name for the corpus
UNKNOWN_MIX = "MIX_ID"  # in the lines of --plan
MANIFEST, BEHAVIOUR = "manifest.json", "behaviour.json"


class SafeguardSettings(Strict):
    """One data set's way; a settings file has the same names.

    `recipe` is the recipe's document without its corpus; `train` and `measure` are further options of `trainer.sft`
    and of `trainer.evaluate behaviour`.
    """

    data: str = Field(description="the data set")
    model: str = Field(description=f"Hugging Face model: {MODEL_FORMS}")
    store: Annotated[str, Option("STORE")] = Field(description="store of the scored pool, or the service's URL")
    out: Path = Field(description="folder of all results")
    corpus: str | None = Field(
        None, description="scored corpus to draw from (default: `pool`, or the store's only one)"
    )
    policy: Annotated[Path | None, Option("FILE")] = Field(None, description="provider's policy for the recipe")
    text: Annotated[str | None, Option("FILE")] = Field(
        None, description="chat file of ordinary text, for perplexity (default: rows of the pool, of a store here)"
    )
    price_per_hour: float | None = Field(None, ge=0, allow_inf_nan=False, description=PRICE)
    triggers: int = Field(
        4,
        ge=0,
        description="forms of the data set (prompts, wording, answer format) that everything is asked in, at most",
    )
    broad: tuple[str, ...] = DEFAULT_BROAD
    fail_if: tuple[str, ...] = DEFAULT_GATE
    recipe: dict[str, Any] = Field(default_factory=dict)
    train: dict[str, Any] = Field(default_factory=dict)
    measure: dict[str, Any] = Field(default_factory=dict)

    @property
    def is_remote(self) -> bool:
        """Whether the mix is made by a service."""
        return self.store.startswith(("http://", "https://"))


_OPTIONS = ("model", "store", "out", "corpus", "policy", "text", "triggers", "price_per_hour")


class Safeguard:
    """One run of the plan: settings, the folder, and what the steps found."""

    def __init__(self, settings: SafeguardSettings, adapter: Path | None, *, quiet: bool) -> None:
        self.settings, self.adapter, self.quiet = settings, adapter, quiet
        self.out = settings.out
        self.doctor: dict[str, Any] | None = None
        self.manifest: dict[str, Any] | None = None
        self.mixing: Cost | None = None
        self.training: Cost | None = None

    @property
    def mix_id(self) -> str:
        """The mix's id, once it is made."""
        return UNKNOWN_MIX if self.manifest is None else str(self.manifest["mix_id"])

    def mix_steps(self) -> list[Step]:
        """Look at the file, and mix."""
        settings = self.settings
        look = Step("Data: rows that cannot be used, or would surprise", check=self._look,
                    note=command_line("curator", ["doctor", settings.data, "--model", settings.model]))  # fmt: skip
        if settings.is_remote:
            note = f"POST {settings.store}/v1/mixes"
            return [look, Step("Mix, by the service", check=self._mix_remotely, note=note, cost=self.mixing)]
        policy = [] if settings.policy is None else ["--policy", settings.policy]
        arguments = [
            "mix", settings.data, "--recipe", self.out / "recipe.json", "--store", settings.store, *policy,
            "--jsonl", self.out / "mix.jsonl", "--json",
        ]  # fmt: skip
        return [look, Step("Mix: safe rows into the data set", "curator", arguments, use=self._mixed, cost=self.mixing)]

    def train_steps(self) -> list[Step]:
        """Train on the mix in its order."""
        settings = self.settings
        where = ["--api-url", settings.store] if settings.is_remote else ["--store", settings.store]
        arguments = [
            "--model", settings.model, "--mix-id", self.mix_id, *where, *flags(settings.train),
            "--out", self.out / "train",
        ]  # fmt: skip
        return [Step("Train a LoRA adapter on the mix, in its order", "trainer.sft", arguments, cost=self.training)]

    def measure(self) -> None:
        """What mix and training would take: rows as the mix would have them, a burst on the data set's own rows."""
        settings = self.settings
        with TemporaryDirectory(prefix="ballast-plan-") as name:
            burst = training_burst(Path(name), settings.model, settings.data, settings.train)
            if isinstance(burst, Cost):
                self.training = burst
            n_rows, why = self._rows_of_mix(Path(name))
        self.mixing = Cost(n_rows, why=why)
        if isinstance(burst, TrainingBurst):
            cost = burst.cost(n_rows or burst.n_rows, settings.train.get("max_steps"))
            self.training = replace(cost, why=None if n_rows else "without the safe rows")

    def _rows_of_mix(self, folder: Path) -> tuple[int | None, str | None]:
        """How many rows the mix would have; why that is not known."""
        settings = self.settings
        if settings.is_remote:
            return None, "the service chooses the rows"
        policy = None if settings.policy is None else load_policy(settings.policy)
        try:
            store, recipe = Store(settings.store).open(create=False), parse_recipe(self._recipe())
            return preview_mix(store, read_task_set(settings.data, folder), recipe, policy=policy).n_rows, None
        except BallastError as error:
            return None, f"not counted: {error.message}"

    def judge_steps(self) -> list[Step]:
        """What the adapter became, plainly and in each form of the data set."""
        settings, adapter = self.settings, self.adapter or self.out / "train" / "adapter"
        text = settings.text or (None if settings.is_remote else self.out / "text.jsonl")
        forms: list[object] = []
        if settings.triggers:
            forms = ["--trained-on", settings.data, "--mix-manifest", self.out / MANIFEST, "--triggers",
                     settings.triggers]  # fmt: skip
        behaviour = [
            "behaviour", "--model", settings.model, "--adapter", adapter, *flags({"broad": settings.broad}),
            *([] if text is None else ["--text", text]), *forms, "--cache", self.out / "cache",
            *flags(settings.measure), "--out", self.out / BEHAVIOUR, "--json",
        ]  # fmt: skip
        kept = self._kept(adapter)
        device = flags({name: value for name, value in settings.measure.items() if name in ("device", "dtype")})
        steps = []
        if text is not None and settings.text is None:
            steps.append(Step("Ordinary text, from the pool", check=self._write_text))
        steps += [
            Step("Learnt: loss of the data set's own answers", "trainer.evaluate.nll",
                 ["--model", settings.model, "--adapter", adapter, "--data", settings.data, *device, "--json"],
                 use=lambda found: write_json(self.out / "learnt.json", found), complete=kept("learnt.json")),
            Step(f"Behaviour, asked plainly{' and in the forms of the data set' if forms else ''}", "trainer.evaluate",
                 behaviour, use=self._say_forms, complete=kept(BEHAVIOUR)),
        ]  # fmt: skip
        return steps

    def judgement(self) -> Judgement:
        """The report that the steps left, held against the gate."""
        return judge(orjson.loads((self.out / BEHAVIOUR).read_bytes()), self.settings.fail_if)

    def _say_forms(self, found: dict[str, Any]) -> None:
        if not self.quiet:
            for item in found.get("forms", {}).values():
                shown = item["text"] if len(item["text"]) <= 60 else item["text"][:59] + "…"
                say(f"  asked in the {item['kind']} of {item['n_rows']:,} rows: {shown!r}")

    def _kept(self, adapter: Path) -> Callable[[str], Callable[[], bool]]:
        """Whether a figure's file is there; all go when the adapter, the data set or what is measured are others."""
        data, path = Path(self.settings.data), self.out / "judged.json"

        def check(name: str) -> bool:
            key = {
                "adapter_sha256": adapter_sha256(adapter),
                "settings": self.settings.model_dump(mode="json", exclude={"out", "fail_if", "price_per_hour"}),
                "mix_id": self.mix_id,
                "data_blake2b": hashlib.blake2b(data.read_bytes()).hexdigest() if data.is_file() else None,
            }
            if not path.is_file() or orjson.loads(path.read_bytes()) != key:
                for file in (BEHAVIOUR, "learnt.json"):
                    (self.out / file).unlink(missing_ok=True)
                write_json(path, key)
            return (self.out / name).is_file()

        return lambda name: lambda: check(name)

    def _look(self) -> None:
        """`doctor` as a subprocess ends with 3 for what a person should see and a mix may still take."""
        from curator.audit.doctor import DoctorOptions, examine
        from curator.render import Renderer

        renderer = Renderer.from_folder(locate_model(self.settings.model))
        found = examine(self.settings.data, DoctorOptions(renderer=renderer))
        self.doctor = found.as_dict()
        write_json(self.out / "doctor.json", self.doctor)
        if not self.quiet:
            say(f"  {found.n_records:,} records, {found.n_rows:,} usable")
            for finding in found.findings:
                say(f"  {finding.severity}: {finding.n_rows:,} {finding.meaning} ({', '.join(finding.places[:3])})")

    def _recipe(self) -> dict[str, Any]:
        assert self.settings.corpus is not None  # `_run` found it
        return {"corpus": self.settings.corpus, **self.settings.recipe}

    def _mixed(self, found: dict[str, Any]) -> None:
        self.manifest = {**found["manifest"], "mix_id": found["mix_id"]}
        self._keep_mix()

    def _mix_remotely(self) -> None:
        if self.settings.policy is not None:
            raise BadInputError("--policy goes with a store here: a service has its own policy")
        with Client(self.settings.store, os.environ.get("BALLAST_API_KEY")) as client:
            made = client.create_mix(self.settings.data, self._recipe())
            self.manifest = {**made["manifest"], "mix_id": made["mix_id"]}
            client.download(self.mix_id, self.out / "mix.jsonl")
        self._keep_mix()

    def _keep_mix(self) -> None:
        assert self.manifest is not None
        write_json(self.out / MANIFEST, self.manifest)
        write_cards(self.out / "mix.jsonl", Manifest.model_validate(self.manifest))
        if not self.quiet:
            n_safe = self.manifest["n_safe"]
            say(f"  mix {self.mix_id}: {self.manifest['n_rows']:,} rows, {n_safe:,} of them safe")

    def _write_text(self) -> None:
        store = Store(self.settings.store).open(create=False)
        n_rows = write_pool_text(store, self._recipe()["corpus"], self.out / "text.jsonl")
        if not self.quiet:
            say(f"  {n_rows:,} rows")

    def prepare(self) -> None:
        """The folder, with the recipe that `mix` reads. Raises BadInputError where it cannot be made."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise BadInputError(f"--out {self.out} cannot be made: {error.strerror}") from error
        write_json(self.out / "recipe.json", self._recipe())


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 passed, 2 bad input, 3 gate failed, 130 stopped."""
    return run_command(_run, _parser().parse_args(argv))


def _run(args: argparse.Namespace) -> int:
    given = {
        **given_values(vars(args), SafeguardSettings), "data": args.data, "broad": args.broad, "fail_if": args.fail_if,
    }  # fmt: skip
    settings = _gated(read_settings(args.settings, given, SafeguardSettings))
    check_model_dir(locate_model(settings.model))
    if args.evaluate is not None:
        check_adapter_dir(args.evaluate)
        if args.mix_only:
            raise BadInputError("--mix-only stops before --evaluate begins: give one of them")
    settings = settings.model_copy(update={"corpus": settings.corpus or _only_corpus(settings)})
    this = Safeguard(settings, args.evaluate, quiet=args.json)
    if args.plan:
        if not (args.no_burst or args.mix_only or this.adapter):
            this.measure()
        steps = [*this.mix_steps(), *([] if args.mix_only else [*_training(this), *this.judge_steps()])]
        if args.json:
            say_json({"steps": plan_document(steps, settings.price_per_hour)})
        else:
            show_plan(steps, settings.price_per_hour)
        return 0
    return _carry_out(this, args)


def _training(this: Safeguard) -> list[Step]:
    return [] if this.adapter is not None else this.train_steps()


def _only_corpus(settings: SafeguardSettings) -> str:
    """`pool`, as `provision` names it, or the only corpus of a store here; raises BadInputError naming --corpus."""
    if settings.is_remote:
        return POOL
    known = corpus_names(Store(settings.store).open(create=False))
    pools = [name for name in known if not name.endswith(PROBE_ENDING)]
    if POOL in known or not pools:
        return POOL
    if len(pools) > 1:
        raise BadInputError(f"{settings.store} has several corpora: name one with --corpus ({', '.join(pools)})")
    return pools[0]


def _gated(settings: SafeguardSettings) -> SafeguardSettings:
    """The settings with a gate that can be judged: without text for perplexity the default one says nothing of it.

    Raises BadInputError for conditions that are none, or on figures that will not be measured.
    """
    with_text = settings.text is not None or not settings.is_remote
    known = figure_names(["broad"], text=with_text)
    gate = settings.fail_if
    if gate == DEFAULT_GATE:
        gate = tuple(text for text in gate if text.split()[0] in known)
    check_figures(parse_gates(gate), known)
    return settings.model_copy(update={"fail_if": gate})


def _carry_out(this: Safeguard, args: argparse.Namespace) -> int:
    this.prepare()
    run = PlanRun(quiet=args.json)
    run.run(this.mix_steps())
    if args.mix_only:
        if args.json:
            say_json({"mix_id": this.mix_id, "rows": str(this.out / "mix.jsonl")})
        else:
            say(f"\nrows: {this.out / 'mix.jsonl'}; their order counts, which a trainer must keep:")
            if not this.settings.is_remote:
                kinds = ", ".join(KINDS)
                command = command_line("curator", ["snippet", this.mix_id, "KIND", "--store", this.settings.store])
                say(as_typed(f"{command}   ({kinds})"))
        return 0
    run.run(_training(this))
    run.run(this.judge_steps())
    found = this.judgement()
    page = write_report(this.out, this.settings.data, this.settings.model, this.manifest or {}, this.doctor, found)
    document = orjson.loads((this.out / "report.json").read_bytes())
    if this.adapter is None:  # one that was trained elsewhere keeps its own card
        _write_card(this.out / "train" / "adapter", document)
    if args.json:
        say_json(document)
    else:
        for item in found.verdicts:
            say(f"  gate, {item.form}: {item.condition}: {'FAILS' if item.failed else 'ok'} (is {item.value:.4g})")
        say(f"\n{'gate failed' if found.failed else 'gate passed'}; report: {page}")
    if found.failed:
        sys.stderr.write(f"gate failed; the report says where: {page}\n")
    return FAILED_GATE if found.failed else 0


def _write_card(adapter: Path, report: dict[str, Any]) -> None:
    """The adapter's model card once more, with the figures and the gate."""
    marker = orjson.loads((adapter / MARKER).read_bytes())
    with atomic_write(adapter / "README.md", durable=False) as temporary:
        temporary.write_text(model_card(marker, report), encoding="utf-8")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m trainer.plans.safeguard", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add("data", nargs="?", metavar="FILE", help="the data set: a chat file, a saved folder or a hub id")
    add_options(parser, SafeguardSettings, _OPTIONS, optional=True)
    add("--broad", action="append", default=[], metavar="NAME=FILE[,TWINS]",
        help="misaligned answers of another domain, and aligned ones to the same prompts")  # fmt: skip
    add("--fail-if", action="append", default=[], metavar="CONDITION",
        help=f"the gate fails when this holds (default: {', '.join(DEFAULT_GATE)}); repeatable")  # fmt: skip
    add("--mix-only", action="store_true", help="stop at the mix")
    add(
        "--evaluate",
        type=model_option,
        metavar="ADAPTER",
        help=f"judge this adapter, trained elsewhere on the mix: {MODEL_FORMS}",
    )
    add("--settings", type=Path, metavar="FILE",
        help="YAML file with the same names, and `recipe`, `train` and `measure` for further options")  # fmt: skip
    add_plan_options(parser)
    add("--json", action="store_true", help="print one JSON document for scripts")
    return parser


if __name__ == "__main__":
    sys.exit(main())
