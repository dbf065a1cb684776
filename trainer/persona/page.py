"""One Markdown page of what extraction, screening and drift measurements left in a folder as JSON."""

from collections.abc import Sequence
from pathlib import Path
from platform import machine
from typing import Any

import orjson

from curator.errors import BadInputError
from trainer.runs.page import results_page, table, written_by


def write_page(folder: Path, out: Path) -> None:
    """Raises BadInputError when the folder holds no extraction."""
    documents = [(path, _read(path)) for path in sorted(folder.glob("*.json"))]
    extracted = [item for _, item in documents if "n_kept" in item]
    if not extracted:
        raise BadInputError(f"{folder} holds no persona vector: run `python -m trainer.persona extract --out {folder}`")
    screened = [item for _, item in documents if item.get("kind") == "project"]
    shifts = [item for _, item in documents if item.get("kind") == "shift"]
    lines = [*_head(extracted[0]), "", *_extracted(extracted), *_screened(screened), *_shifts(shifts)]
    wrote = [*written_by("python -m trainer.persona page"), "Made from the files of `extract`, `project` and `shift`."]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(results_page("Persona vectors", finding(extracted, shifts), lines, wrote), encoding="utf-8")


def finding(extracted: Sequence[dict[str, Any]], shifts: Sequence[dict[str, Any]]) -> str:
    """How many pairs each vector is made of, and which way adapters moved along them, in one sentence."""
    kept = ", ".join(f"{item['n_kept']} of {item['n_pairs']} for {item['trait']}" for item in extracted)
    moved = "; ".join(map(_moved, shifts)) or "no adapter's drift was measured"
    return f"Pairs of answers that a vector could be made of: {kept}; {moved}."


def _moved(item: dict[str, Any]) -> str:
    found = item["shift"]
    away = "away from" if found["high"] < 0 else "neither clearly towards nor away from"
    way = "towards" if found["low"] > 0 else away
    return (
        f"the adapter {item['adapter']} moved the model {way} {item['trait']} ({100 * item['relative']:+.2f} % of the "
        f"length of its states, {item['n_prompts']} prompts)"
    )


def _head(report: dict[str, Any]) -> list[str]:
    wanted, packages = report["identity"], report["environment"]["packages"]
    sampling = wanted["sampling"]
    rule = (
        f"likelihood rule, margin at least {report['rule_settings']['min_margin']} nats per token on both sides"
        if report["rule"] == "likelihood"
        else f"judge {wanted['filter']['judge']}"
    )
    return [
        f"Model with weights `{wanted['weights_sha256'][:12]}`, {len(report['norms']) - 1} layers, {wanted['dtype']} "
        f"({machine()}); torch {packages['torch']}, transformers {packages['transformers']}. Answers: "
        f"{wanted['samples']} to each prompt, at most {sampling['max_new_tokens']} tokens, temperature "
        f"{sampling['temperature']:g}, seed {sampling['seed']}. Pairs kept by: {rule}.",
    ]


def _extracted(reports: Sequence[dict[str, Any]]) -> list[str]:
    rows = []
    for report in reports:
        norms, left = report["norms"], ", ".join(f"{key} {n}" for key, n in report["left_out"].items())
        n = len(norms) - 1
        places = [norms[round(n * share)] for share in (0.25, 0.5, 5 / 7, 1)]
        kept = f"{report['n_kept']} of {report['n_pairs']}"
        rows.append([report["trait"], kept, left, *(f"{norm:.3g}" for norm in places)])
    return [
        "## Extraction", "",
        "Norm of the vector at a quarter, a half and five sevenths of the depth, and at the last row. A pair may be",
        "left out for several reasons.", "",
        *table(["trait", "pairs kept", "left out", "1/4", "1/2", "5/7", "last"], rows), "",
    ]  # fmt: skip


def _screened(results: Sequence[dict[str, Any]]) -> list[str]:
    if not results:
        return []
    rows = []
    for item in results:
        own = item.get("difference")
        compared = f"{own['mean']:+.3f} (sd {own['sd']:.3f}, {item['n_compared']} rows)" if own else ""
        found = item["projection"]
        mean = f"{found['mean']:+.3f} (sd {found['sd']:.3f})"
        rows.append([item["trait"], item["layer"], item["data"], item["n_rows"], mean, compared])
    return [
        "## Screening", "",
        "Mean projection of a row's response states; the difference is from the baseline's answers to the same",
        "prompts.", "",
        *table(["trait", "row", "data", "rows", "projection", "difference"], rows), "",
    ]  # fmt: skip


def _shifts(results: Sequence[dict[str, Any]]) -> list[str]:
    if not results:
        return []
    rows = []
    for item in results:
        found, prompts = item["shift"], f"{item['n_prompts']} ({item['prompts']})"
        interval = f"{found['value']:+.4f} ({found['low']:+.4f} to {found['high']:+.4f})"
        relative = f"{100 * item['relative']:+.2f} %"
        rows.append([item["trait"], item["layer"], item["adapter"], prompts, interval, relative])
    return [
        "## Fine-tuning shift", "",
        "Drift of the state at the last prompt token along the vector, adapter minus base, with a 95 % bootstrap",
        "interval over prompts; relative to the mean length of the base's states.", "",
        *table(["trait", "row", "adapter", "prompts", "shift", "relative"], rows), "",
    ]  # fmt: skip


def _read(path: Path) -> dict[str, Any]:
    try:
        document = orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise BadInputError(f"{path} is not JSON: {error}") from error
    return document if isinstance(document, dict) else {}
