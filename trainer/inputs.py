"""What a run trains on: rows read, verified and rendered, where they came from, and what to warn about."""

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator.manifest import Manifest
from curator.render import Renderer
from curator.tasks import read_task_set
from trainer.config import TrainConfig
from trainer.data import PreparedRows, prepare, task_rows
from trainer.mixes import TrainRow, manifest_bytes, open_mix
from trainer.report import Warned


@dataclass(frozen=True)
class Inputs:
    """Rendered rows, a plain account of their source for config.json and report.json, and warnings."""

    prepared: PreparedRows
    rows: dict[str, Any]
    renderer: Renderer
    warnings: list[Warned]


def read_inputs(config: TrainConfig, folder: Path, weights_sha256: str, api_key: str | None) -> Inputs:
    """Every row of the mix or file, rendered with the model folder's own tokenizer and template.

    Files that must be fetched or unpacked go into `folder`. Raises IntegrityError for rows that are not the
    manifest's, BadRowsError for rows that cannot be trained.
    """
    renderer = Renderer.from_folder(config.model)
    if config.mix_id is not None:
        prepared, rows, warnings = _from_mix(config, folder, renderer, weights_sha256, api_key)
    else:
        prepared, rows, warnings = _from_file(config, folder, renderer)
    return Inputs(prepared, rows, renderer, warnings + _content_warnings(prepared, config))


def _from_mix(
    config: TrainConfig, folder: Path, renderer: Renderer, weights: str, api_key: str | None
) -> tuple[PreparedRows, dict[str, Any], list[Warned]]:
    mix = open_mix(config, folder, api_key)
    prepared = prepare(mix.rows(), mix.manifest.n_rows, renderer, config)
    rows = {
        "mix_id": mix.manifest.mix_id,
        "rows_sha256": mix.manifest.rows_sha256,
        "manifest_sha256": hashlib.sha256(manifest_bytes(mix.manifest)).hexdigest(),
        "n_rows": mix.manifest.n_rows,
        "n_safe": mix.manifest.n_safe,
        "order": mix.manifest.order.name,
    }
    return prepared, rows, mix_warnings(mix.manifest, weights, renderer.renderer_id, config.mask_rule)


def _from_file(
    config: TrainConfig, folder: Path, renderer: Renderer
) -> tuple[PreparedRows, dict[str, Any], list[Warned]]:
    assert config.data is not None
    work = folder / "rows"
    task = read_task_set(config.data, work, format=config.corpus_format)
    try:
        if config.strict or not task.n_rows:
            task.require_no_rejects()
        rows: Iterator[TrainRow] = task_rows(task)
        prepared = prepare(rows, task.n_rows, renderer, config)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    source = {
        "file": config.data.name,
        "task_sha256": task.sha256,
        "n_rows": task.n_rows,
        "n_rejected": task.n_rejected,
        "reject_codes": task.reject_codes,
    }
    if not task.n_rejected:
        return prepared, source, []
    first = task.rejects[0]
    text = (
        f"{task.n_rejected} of {task.n_parsed} records of {config.data.name} were left out; the first is "
        f"{first.place()}: {first.code}, {first.message}"
    )
    return prepared, source, [Warned("rows_left_out", text)]


def mix_warnings(manifest: Manifest, weights_sha256: str, renderer_id: str, mask_rule: str) -> list[Warned]:
    """What differs between the model that is trained and the one that the mix was chosen with.

    A mix whose pools used no scorer (strategy `random` on an unscored corpus) fits any model.
    """
    found = []
    aligned = [ref for pool in manifest.pools for ref in pool.scorers if ref.role == "aligned"]
    others = sorted({ref.weights_sha256 or "unknown" for ref in aligned if ref.weights_sha256 != weights_sha256})
    if others:
        text = (
            f"the model trained (weights {weights_sha256[:12]}) is not the aligned model that scored this mix "
            f"(weights {', '.join(item[:12] for item in others)}): its safe rows were chosen for another model"
        )
        found.append(Warned("other_model_than_scored", text))
    if any(ref.adapter_sha256 for ref in aligned):
        text = "the aligned model that scored this mix had an adapter on; the model trained starts without one"
        found.append(Warned("aligned_scorer_had_adapter", text))
    tokens = manifest.tokens
    if tokens.renderer_id is not None and tokens.renderer_id != renderer_id:
        text = "tokenizer or chat template differ from those of the aligned scorer: token counts in the manifest differ"
        found.append(Warned("other_renderer_than_scored", text))
    if tokens.mask_rule is not None and tokens.mask_rule != mask_rule:
        text = f"trained with mask rule {mask_rule}, the mix was scored with {tokens.mask_rule}"
        found.append(Warned("other_mask_rule_than_scored", text))
    return found


def _content_warnings(prepared: PreparedRows, config: TrainConfig) -> list[Warned]:
    content, found = prepared.report(), []
    if content.n_answers_cut:
        text = (
            f"{content.n_answers_cut} of {content.n_rows} rows have answers cut at {config.max_length} tokens (the "
            f"longest row has {content.longest_row}): the model does not learn how those end"
        )
        found.append(Warned("answers_cut", text))
    if content.n_masked:
        text = f"{content.n_masked} of {content.n_rows} rows stay in place but train nothing"
        found.append(Warned("masked_rows", text))
    return found
