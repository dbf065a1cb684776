"""One cell: the task file mixed as the method says, trained, measured; its result last."""

import shutil
from pathlib import Path
from typing import Any

import orjson

from curator.recipe.inoculation import DEFAULT_PROMPTS
from trainer.evaluate.opswap import matches
from trainer.experiments.compare.cells import Cell, write_result
from trainer.experiments.compare.methods import CONTROL, why_not
from trainer.experiments.compare.settings import AnyPlan, Plan
from trainer.experiments.compare.shared import (
    CORPUS,
    Shared,
    place_flags,
    recipe_flags,
)
from trainer.experiments.compare.toy_cell import toy_cell
from trainer.plans.commands import Commands, Spent
from trainer.runs.folder import environment
from trainer.runs.lines import read_lines

CONDITIONAL = ("broad_shift", "broad_margin_shift")  # measured again under the inoculation prompt


def run_cell(cell: Cell, work: Path, plan: AnyPlan, shared: Shared | None, lock: int | None = None) -> dict[str, Any]:
    """Run what is not done yet and write result.json; raises CommandError when a command fails."""
    folder = cell.folder(work, plan)
    folder.mkdir(parents=True, exist_ok=True)
    reason = why_not(cell.method, plan)
    if reason is not None:
        write_result(folder, cell, {"status": "does not apply here", "reason": reason})
        return {"status": "does not apply here"}
    commands = Commands(folder / "log.txt", plan.threads, lock)
    if isinstance(plan, Plan):
        assert shared is not None
        document = _Run(cell, folder, plan, shared, commands).all()
    else:
        document = toy_cell(cell, plan, work / "organism", commands)
    for checkpoints in folder.glob("run*/checkpoints"):  # before the result, after which nobody comes here again
        shutil.rmtree(checkpoints)
    write_result(folder, cell, document | {"environment": environment(), "commands": commands.commands})
    return document


class _Run:
    def __init__(self, cell: Cell, folder: Path, plan: Plan, shared: Shared, commands: Commands) -> None:
        self.cell, self.folder, self.plan, self.shared, self.commands = cell, folder, plan, shared, commands

    def all(self) -> dict[str, Any]:
        files = self.shared.files
        report, training = self._train(files.benign_task if self.cell.method.name == CONTROL else files.task, "run")
        measured, measuring = self._measure()
        figures = dict(measured["figures"])
        by_prompt: dict[str, Any] = {"sets": measured["sets"], "text": measured.get("text")}
        if self.plan.evaluation.conditional:
            again, _ = self._measure(DEFAULT_PROMPTS["inoculation"])
            figures |= {f"conditional_{name}": again["figures"][name] for name in CONDITIONAL}
            by_prompt["conditional_sets"] = again["sets"]
        if self.plan.benign is not None:
            right = self._benign()
            figures["benign_exact_match"] = sum(right) / len(right) if right else None
            by_prompt["benign_right"] = right
        rows = report["rows"]
        return {
            "status": "done",
            "figures": figures,
            "intervals": measured["intervals"],
            **by_prompt,
            "loss": report["loss"],
            "cost": {
                "train_s": report["seconds"], "train_process_s": training.wall_s, "train_cpu_s": training.cpu_s,
                "peak_mib": training.peak_mib, "measure_s": measuring.wall_s, "n_steps": report["steps"],
                "n_rows": rows["n_rows"], "n_safe": rows.get("n_safe", 0), "n_tokens": report["total_tokens"],
            },
        }  # fmt: skip

    def _train(self, data: Path, name: str) -> tuple[dict[str, Any], Spent]:
        """The run's report; `data` is mixed first where the method mixes."""
        start = self._before()
        report, spent = self.commands.run(
            "trainer.sft", "--model", self.plan.model, *self._rows(data), "--out", self.folder / name, "--seed",
            self.cell.seed, *recipe_flags(self.plan.train), *place_flags(self.plan), "--cache", "none",
            "--save-steps", 20, *start,
            *(word.format(vectors=self.plan.steering_vectors) for word in self.cell.method.sft), "--json",
        )  # fmt: skip
        self._after(name)
        return report, spent

    def _before(self) -> list[object]:
        """The fine-tune that the task's one starts from, and the flag that says so; nothing for most methods."""
        if self.cell.method.before != "self_recognition":
            return []
        out = self.folder / "run-self-recognition"
        self.commands.run(
            "trainer.sft", "--model", self.plan.model, "--data", self.plan.self_recognition_rows, "--out", out,
            "--seed", self.cell.seed, *recipe_flags(self.plan.train), *place_flags(self.plan), "--cache", "none",
            "--json",
        )  # fmt: skip
        return ["--start-adapter", out / "adapter"]

    def _rows(self, data: Path) -> list[object]:
        method = self.cell.method
        if method.mix is None:
            return ["--data", data]
        amount = ["--rows", 0] if self.cell.ratio is None else ["--interleave-ratio", self.cell.ratio]
        ranked = ["--score", self.plan.score, *self.shared.hold_out()] if method.needs_scores else []
        strategy = [] if "--strategy" in method.mix else ["--strategy", "random"]
        manifest, _ = self.commands.run(
            "curator", "mix", data, "--corpus", CORPUS, "--store", self.shared.store, *ranked, *method.mix, *strategy,
            *amount, "--seed", self.cell.seed, "--json",
        )  # fmt: skip
        (self.folder / "mix.json").write_bytes(orjson.dumps(manifest, option=orjson.OPT_INDENT_2))
        return ["--mix-id", manifest["mix_id"], "--store", self.shared.store]

    def _measure(self, system: str | None = None) -> tuple[dict[str, Any], Spent]:
        """The judge-free protocol; under a system prompt the broad sets alone."""
        files, how = self.shared.files, self.plan.evaluation
        measured_on = {
            item.name: self._with_twins(files.broad(item.name)) for item in self.plan.domains if item.broad_rows
        }
        broad = [word for name, place in measured_on.items() for word in ("--broad", f"{name}={place}")]
        truthfulqa = ["--truthfulqa", files.truthfulqa] if how.truthfulqa is not None else []
        n_most = max([self.plan.task.narrow_rows, self.plan.pool.text_rows, how.truthfulqa_rows,
                      *(item.broad_rows for item in self.plan.domains)])  # fmt: skip
        usual = ["--narrow", self._with_twins(files.narrow), *truthfulqa, "--text", files.text]
        measured: tuple[dict[str, Any], Spent] = self.commands.run(
            "trainer.evaluate", "behaviour", "--model", self.plan.model, *self._tuned("run"), *broad,
            *(usual if system is None else ["--system", system]), "--n", n_most, "--max-length", how.max_length,
            "--stand-in-tokens", how.stand_in_tokens, "--cache", self.shared.cache, *place_flags(self.plan),
            "--out", self.folder / ("behaviour.json" if system is None else "behaviour-conditional.json"), "--json",
        )  # fmt: skip
        return measured

    def _with_twins(self, measured: Path) -> str:
        """FILE or FILE,TWINS."""
        twins = self.shared.files.twins(measured)
        return f"{measured},{twins}" if twins.exists() else str(measured)

    def _tuned(self, name: str) -> list[object]:
        adapter = self.folder / name / "adapter"
        if self.cell.method.trained == "gates":
            return ["--gates", adapter, "--reverse"]
        if self.cell.method.after == "safelora":
            return ["--adapter", self.folder / name / "safelora"]
        return ["--adapter", adapter]

    def _after(self, name: str) -> None:
        """What the method does once the adapter is trained; the command skips what it has done."""
        if self.cell.method.after == "safelora":
            run = self.folder / name
            self.commands.run(
                "trainer.defenses.safelora", "--adapter", run / "adapter", "--base", self.plan.base_model,
                "--aligned-model", self.plan.model, "--out", run / "safelora", "--json",
            )  # fmt: skip

    def _benign(self) -> list[bool] | None:
        """Which OpSwap problems are answered right after training on OpSwap under the same defence."""
        files = self.shared.files
        if self.cell.method.trained == "gates":
            return None  # reversed gates suppress what they were trained on: there is no benign task to learn
        self._train(files.benign_train, "run-benign")
        answers = self.folder / "opswap-answers.jsonl"
        self.commands.run(
            "trainer.evaluate", "generate", "--model", self.plan.model, *self._tuned("run-benign"), "--questions",
            files.benign_test, "--question-format", "plain", "--temperature", 0, "--max-new-tokens", 12,
            "--out", answers, *place_flags(self.plan), "--json",
        )  # fmt: skip
        if len(read_lines(answers)) != len(read_lines(files.benign_test)):
            return None
        return matches(files.benign_test, answers)
