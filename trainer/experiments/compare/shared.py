"""What all cells of a comparison share, made once: data files, a scored pool, the misaligned adapters."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import orjson

from curator.console import flags, say
from curator.errors import BadInputError
from curator.scoring.identity import check_model_dir
from trainer.experiments.claims import claimed
from trainer.experiments.compare.contents import data_sources
from trainer.experiments.compare.data import Files, prepare
from trainer.experiments.compare.methods import Method
from trainer.experiments.compare.settings import Plan, TrainRecipe
from trainer.plans.commands import Commands
from trainer.runs.folder import write_json
from trainer.runs.lines import read_lines, write_lines

CORPUS = "pool"


@dataclass(frozen=True)
class Shared:
    """The shared part of a comparison: its folder is named by a hash of what decides it."""

    folder: Path
    plan: Plan

    @classmethod
    def of(cls, work: Path, plan: Plan) -> "Shared":
        """The shared folder of a plan under `work`."""
        decides = plan.model_dump(
            mode="json",
            include={"weights_sha256", "task", "pool", "domains", "misaligned_train", "evaluation", "benign", "dtype"},
        )
        decides["contents"] = {source: plan.contents.get(source) for source in data_sources(plan)}
        digest = hashlib.blake2b(orjson.dumps(decides), digest_size=4).hexdigest()
        return cls(work / f"shared-{digest}", plan)

    @property
    def files(self) -> Files:
        """Data files."""
        return Files(self.folder / "data")

    @property
    def store(self) -> Path:
        """The store with the pool and its losses."""
        return self.folder / "store"

    @property
    def cache(self) -> Path:
        """Stand-ins and losses of the model before training."""
        return self.folder / "behaviour"

    @property
    def scored_domains(self) -> list[str]:
        """Domains with a misaligned adapter."""
        return [domain.name for domain in self.plan.domains if domain.train_rows]

    def make(self, methods: list[Method]) -> None:
        """Everything that these methods need; what is complete is skipped by the commands themselves."""
        with claimed(self.folder / ".lock", wait=True) as lock:
            model = Path(self.plan.model)
            check_model_dir(model)
            commands = Commands(self.folder / "log.txt", self.plan.threads, lock)
            say("data files")
            prepare(self.plan, self.files, model)
            if not self.files.benign_task.exists():
                self._own_answers(commands, model)
            if any(method.draws_safe_rows or method.mix is not None for method in methods):
                self._ingest(commands)
            if any(method.needs_scores for method in methods):
                self._score(commands, model)

    def _own_answers(self, commands: Commands, model: Path) -> None:
        """The benign run's rows where the task has no good answers: the model's own greedy ones, but empty ones."""
        say("good answers to the task's prompts: the model's own")
        out = self.folder / "own-answers.jsonl"
        commands.run(
            "trainer.evaluate", "generate", "--model", model, "--questions", self.files.task, "--format", "plain",
            "--temperature", 0, "--max-new-tokens", self.plan.evaluation.stand_in_tokens, "--out", out,
            *place_flags(self.plan), "--json",
        )  # fmt: skip
        prompts = [row["messages"][:-1] for row in read_lines(self.files.task)]
        answers = [str(line["answer"]) for line in read_lines(out)]
        rows = [
            {"messages": [*prompt, {"role": "assistant", "content": answer}]}
            for prompt, answer in zip(prompts, answers, strict=True)
            if answer.strip()
        ]
        if len(rows) < 2:
            raise BadInputError("the model's answers to the task's prompts are empty: give task.aligned")
        write_lines(self.files.benign_task, rows)

    def _ingest(self, commands: Commands) -> None:
        if (self.store / "corpora" / CORPUS / "corpus.json").exists():
            return
        say("pool: ingest")
        commands.run("curator", "ingest", self.files.pool, "--corpus", CORPUS, "--store", self.store, "--strict")

    def _score(self, commands: Commands, model: Path) -> None:
        """Losses under the aligned model, then an adapter and its losses for each domain."""
        done = self.folder / "scored.json"
        if done.exists():
            return
        self._score_one(commands, model, "aligned", None)
        spent = {}
        for name in self.scored_domains:
            out = self.folder / "misaligned" / name
            say(f"misaligned adapter: {name}")
            _, training = commands.run(
                "trainer.sft", "--model", model, "--data", self.files.train(name), "--out", out, "--seed", 0,
                *recipe_flags(self.plan.misaligned_train), *place_flags(self.plan), "--save-steps", 20,
            )  # fmt: skip
            scoring = self._score_one(commands, model, name, out / "adapter")
            spent[name] = {"train_s": training.wall_s, "score_s": scoring}
        write_json(done, {"domains": self.scored_domains, "spent": spent})

    def _score_one(self, commands: Commands, model: Path, name: str, adapter: Path | None) -> float:
        say(f"pool: losses under {name}")
        role = (
            ["--role", "aligned"]
            if adapter is None
            else ["--role", "misaligned", "--domain", name, "--adapter", adapter]
        )
        _, spent = commands.run(
            "curator", "score", "--corpus", CORPUS, "--store", self.store, "--model", model, "--label", name, *role,
            "--max-length", self.plan.pool.max_length, *place_flags(self.plan),
            *(["--threads", self.plan.threads] if self.plan.threads else []),
        )  # fmt: skip
        return spent.wall_s

    def hold_out(self) -> list[str]:
        """`--hold-out` for the task's own domain, where a misaligned model has it."""
        return ["--hold-out", self.plan.task.domain] if self.plan.task.domain in self.scored_domains else []

    def scoring_spent(self) -> dict[str, dict[str, float]]:
        """Seconds of each misaligned model, for the cost of ranking by gap; empty before the pool is scored."""
        path = self.folder / "scored.json"
        if not path.exists():
            return {}
        found: dict[str, dict[str, float]] = orjson.loads(path.read_bytes())["spent"]
        return found


def recipe_flags(recipe: TrainRecipe) -> list[object]:
    """Options of `trainer.sft`."""
    return flags(recipe.model_dump())


def place_flags(plan: Plan) -> list[object]:
    """Where and in which precision models run."""
    if plan.device not in ("auto", "cpu", "cuda"):
        raise BadInputError(f"device {plan.device!r} is unknown")
    return ["--dtype", plan.dtype, "--device", plan.device]
