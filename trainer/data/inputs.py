"""What a run trains on: rows read, verified and rendered, where they came from, and what to warn about."""

import hashlib
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from curator.console import list_problems
from curator.corpus.formats import Row, locate, read_rows
from curator.corpus.task_set import read_task_set
from curator.errors import BadInputError
from curator.mix.describe import low_token_share
from curator.mix.identity import Manifest
from curator.render import Renderer, RenderSettings
from trainer.config import TrainConfig
from trainer.config.defences import file_sha256
from trainer.config.rules import check_safe_rows, check_token_classes
from trainer.data.cache import RenderCache, cache_key
from trainer.data.mixes import Mix, TrainRow, manifest_bytes, open_mix
from trainer.data.rows import (
    MAX_LISTED,
    PreparedRows,
    check_masked,
    check_window,
    dropped_text,
    prepare,
    task_rows,
)
from trainer.runs.folder import environment
from trainer.runs.report import Warned


@dataclass(frozen=True)
class Inputs:
    """Rendered rows, a plain account of their source for config.json and report.json, and warnings."""

    prepared: PreparedRows
    rows: dict[str, Any]
    renderer: Renderer
    warnings: list[Warned]
    cache_key: str = ""


def read_inputs(
    config: TrainConfig, folder: Path, weights_sha256: str, api_key: str | None, cache: RenderCache | None = None
) -> Inputs:
    """Every row of the mix or file, rendered with the model folder's own tokenizer and template.

    A mix is rendered with the settings (date, parts that may be left out) of its aligned scorer, where none are given.

    Files that must be fetched or unpacked go into `folder`. Rows that the cache holds are neither read nor rendered
    again. Raises IntegrityError for rows that are not the manifest's, BadRowsError for rows that cannot be trained.
    """
    cache = cache or RenderCache(None)
    if config.mix_id is not None:
        mix = open_mix(config, folder, api_key)
        renderer = Renderer.from_folder(config.model, settings=mix_rendering(config, mix.manifest))
        prepared, rows, warnings, key = _from_mix(config, mix, renderer, weights_sha256, cache)
    else:
        renderer = Renderer.from_folder(config.model, settings=config.rendering)
        prepared, rows, warnings, key = _from_file(config, folder, renderer, cache)
    check_window(prepared, config.model)
    check_safe_rows(config.defences, prepared.report().n_safe)
    if config.reserve is not None and config.reserve.share * prepared.report().n_safe < 1:
        raise BadInputError(
            f"reserve: {config.reserve.share:g} of the {prepared.report().n_safe} safe rows of this mix is no row: "
            "mix more safe rows in, or hold a larger share back"
        )
    if config.needs_classes:
        check_token_classes(config.defences, prepared.n_by_class(), config.max_length)
    return Inputs(prepared, rows, renderer, warnings + _content_warnings(prepared, config), key)


_Read = tuple[PreparedRows, dict[str, Any], list[Warned], str]


def _key(config: TrainConfig, renderer: Renderer, source: dict[str, Any]) -> str:
    return cache_key(
        {
            "source": source,
            "renderer_id": renderer.renderer_id,
            "template_sha256": renderer.template_sha256,
            "tokenizer_sha256": renderer.tokenizer_sha256,
            "mask_rule": config.mask_rule,
            "max_length": config.max_length,
            "classes": config.needs_classes,
            "product_version": environment()["packages"]["ballast"],
        }
    )


def mix_rendering(config: TrainConfig, manifest: Manifest) -> RenderSettings:
    """The settings that the mix's aligned scorer rendered with; an option that was given takes the place of its own."""
    scored, given = RenderSettings.of_document(manifest.tokens.render_settings), config.rendering
    return RenderSettings(given.template_date or scored.template_date, given.accept_dropped or scored.accept_dropped)


def _from_mix(config: TrainConfig, mix: Mix, renderer: Renderer, weights: str, cache: RenderCache) -> _Read:
    key = _key(config, renderer, {"mix_id": mix.manifest.mix_id, "rows_sha256": mix.manifest.rows_sha256})
    found = cache.load(key)
    if found is not None and len(found[0].input_ids) == mix.manifest.n_rows:
        prepared = found[0]
        check_masked(prepared, config)
    else:
        prepared = prepare(mix.rows(), mix.manifest.n_rows, renderer, config)
        cache.save(key, prepared, {})
    rows = {
        "mix_id": mix.manifest.mix_id,
        "rows_sha256": mix.manifest.rows_sha256,
        "manifest_sha256": hashlib.sha256(manifest_bytes(mix.manifest)).hexdigest(),
        "n_rows": mix.manifest.n_rows,
        "n_safe": mix.manifest.n_safe,
        "order": mix.manifest.order.name,
    }
    warnings = mix_warnings(mix.manifest, weights, renderer.renderer_id, config.mask_rule)
    return prepared, rows, warnings + _share_warnings(prepared, mix.manifest), key


def _from_file(config: TrainConfig, folder: Path, renderer: Renderer, cache: RenderCache) -> _Read:
    assert config.data is not None
    located = locate(config.data)
    source = {
        "data_sha256": files_sha256(located.files),
        "suffixes": located.files[0].suffixes,
        "format": config.data_format,
        "layout": config.data_layout,
        "on_bad_rows": config.on_bad_rows,
    }
    key = _key(config, renderer, source)
    found = cache.load(key)
    if found is not None:
        prepared, document = found
        check_masked(prepared, config, lambda positions: places_in_file(config, positions))
    else:
        prepared, document = _render_file(config, folder / "rows", renderer)
        cache.save(key, prepared, document)
    warnings = []
    if document["n_rejected"]:
        text = (
            f"{document['n_rejected']} of {document['n_rejected'] + document['n_rows']} records of "
            f"{located.name} were left out; the first is {document['first_reject']}"
        )
        warnings = [Warned("rows_left_out", text)]
    shown = {name: value for name, value in document.items() if name != "first_reject"}
    return prepared, {"file": located.name, **shown}, warnings, key


def _render_file(config: TrainConfig, work: Path, renderer: Renderer) -> tuple[PreparedRows, dict[str, Any]]:
    assert config.data is not None
    task = read_task_set(config.data, work, format=config.data_format, layout=config.data_layout)
    try:
        list_problems(task.reject_dicts()[:MAX_LISTED])
        task.require_usable(config.on_bad_rows)
        rows: Iterator[TrainRow] = task_rows(task)
        prepared = prepare(rows, task.n_rows, renderer, config, lambda positions: places_in_file(config, positions))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    first = task.rejects[0] if task.rejects else None
    return prepared, {
        "task_sha256": task.sha256,
        "n_rows": task.n_rows,
        "n_rejected": task.n_rejected,
        "reject_codes": task.reject_codes,
        "first_reject": first and f"{first.place()}: {first.code}, {first.message}",
    }


def places_in_file(config: TrainConfig, positions: Collection[int]) -> dict[int, str]:
    """Where usable rows of the data set stand in it (`line 7`), by their 0-based position among the usable ones.

    The file is read again: this is for errors, and rows that are left out before a row shift its position.
    """
    assert config.data is not None
    found = read_rows(config.data, format=config.data_format, layout=config.data_layout)
    rows = (row for row in found if isinstance(row, Row))
    return {position: row.place() for position, row in enumerate(rows) if position in positions}


def data_sha256(source: str | Path) -> str:
    """SHA-256 over a data set's bytes, hex: a file's own, or that of its files' in order."""
    return files_sha256(locate(source).files)


def files_sha256(files: Sequence[Path]) -> str:
    """A single file's SHA-256, or the SHA-256 over those of several in order; hex."""
    found = [file_sha256(path) for path in files]
    return found[0] if len(found) == 1 else hashlib.sha256("\n".join(found).encode()).hexdigest()


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
        text = (
            "tokenizer, chat template or its settings differ from those of the aligned scorer: token counts in the "
            "manifest differ"
        )
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
    if content.dropped:
        text = (
            f"the chat template leaves out parts of messages, as accepted: {dropped_text(content.dropped)}; the model "
            "does not see them"
        )
        found.append(Warned("parts_dropped", text))
    if content.n_masked:
        text = f"{content.n_masked} of {content.n_rows} rows stay in place but train nothing"
        found.append(Warned("masked_rows", text))
    return found


def _share_warnings(prepared: PreparedRows, manifest: Manifest) -> list[Warned]:
    """What the manifest says of safe rows of few trained tokens, of a mix without a scorer to count them with."""
    if manifest.tokens.safe is not None:
        return []
    content, n_safe = prepared.report(), prepared.n_safe_trained()
    text = low_token_share(content.n_safe / content.n_rows, n_safe, content.n_response_tokens - n_safe)
    return [] if text is None else [Warned("low_token_share", text)]
