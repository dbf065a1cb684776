"""A calibration card: read from a store, written as Markdown and JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from curator.console import Progress, escape_markdown
from curator.corpus.manifest import Scorer
from curator.errors import BadInputError
from curator.query.database import connect
from curator.query.queries import fetch_messages, gap_table, run_named
from curator.query.scorers import ResolvedScorers, resolve_scorers
from curator.recipe import Pool
from curator.recipe.seeds import hash_keys
from curator.render import Renderer
from curator.store.store import Store
from trainer.evaluate.metrics import auc_interval
from trainer.experiments.calibration.again import Again, adapters_of
from trainer.experiments.calibration.measures import (
    SCORES,
    Separation,
    coverage,
    noise,
    recorded_noise,
    scores_of,
    ties,
)
from trainer.runs.page import results_page, table, written_by


@dataclass(frozen=True)
class Source:
    """The store and its two corpora: ordinary rows, and held-out misaligned answers labelled by domain."""

    store: Store
    pool: str
    probe: str
    aligned: str | None = None


def card(source: Source, *, seed: int = 0, again: Again | None = None) -> dict[str, Any]:
    """Everything on the card; with `again` some pool rows are scored once more.

    Raises MissingError without scorers, BadInputError when the two corpora were scored by other models, or when the
    folders of `again` are not those models.
    """
    pool, probe = _tables(source, ())
    resolved = _same_models(source)
    domains = sorted({item for item in probe.column("domain").to_pylist() if item is not None})
    if not domains:
        raise BadInputError(f"corpus {source.probe} has no domain labels: ingest its files with --domain NAME each")
    separations = _separations(source, pool, probe, resolved, domains, seed)
    measured = {item.domain for item in separations}
    found = _noise(source, resolved, again)
    gaps = scores_of(pool, "gap_abs")
    corpora = {source.pool: pool, source.probe: probe}
    covered = {
        name: coverage(
            table, _statuses(source.store, name, resolved), only_fitting=_only_fitting(source.store, name, resolved)
        )
        for name, table in corpora.items()
    }
    return {
        "format_version": 1, "pool": source.pool, "probe": source.probe,
        "models": [scorer.as_dict() for scorer in (resolved.aligned, *resolved.misaligned) if scorer is not None],
        "dtype": resolved.aligned.identity["dtype"] if resolved.aligned else None,
        "separation": [item.as_dict() for item in separations],
        "not_separated": {
            name: len(scores_of(probe, "gap_abs", name)) for name in domains if name not in measured
        },
        "noise": found,
        "ties": None if found is None else ties(gaps, found["tie_band"]),
        "coverage": covered,
    }  # fmt: skip


def _tables(source: Source, hold_out: tuple[str, ...]) -> tuple[pa.Table, pa.Table]:
    found = []
    for corpus in (source.pool, source.probe):
        pool = Pool(corpus=corpus, aligned=source.aligned, hold_out=hold_out)
        found.append(gap_table(source.store, resolve_scorers(source.store, pool)))
    return found[0], found[1]


def _same_models(source: Source) -> ResolvedScorers:
    first, second = (
        resolve_scorers(source.store, Pool(corpus=name, aligned=source.aligned)) for name in (source.pool, source.probe)
    )
    ids = [
        {item.scorer_id: item.shown for item in (found.aligned, *found.misaligned) if item} for found in (first, second)
    ]
    other = [*(ids[0].keys() - ids[1].keys()), *(ids[1].keys() - ids[0].keys())]
    if other:
        names = ", ".join(sorted((ids[0] | ids[1])[key] for key in other))
        raise BadInputError(
            f"corpora {source.pool} and {source.probe} were not scored by the same models: only one has {names}"
            f"{_why(first, second)}. Score both under each of them"
        )
    return first


def _why(one: ResolvedScorers, two: ResolvedScorers) -> str:
    """What differs between scorers of one label in both corpora: mostly they are meant to be the same model."""
    fields = sorted(
        {
            name
            for left in (one.aligned, *one.misaligned)
            for right in (two.aligned, *two.misaligned)
            if left is not None and right is not None and left.label == right.label
            for name in left.identity.keys() | right.identity.keys()
            if left.identity.get(name) != right.identity.get(name)
        }
    )
    return f" (scorers of the same label differ in {', '.join(fields)})" if fields else ""


def _separations(
    source: Source, pool: pa.Table, probe: pa.Table, resolved: ResolvedScorers, domains: Sequence[str], seed: int
) -> list[Separation]:
    models = {scorer.domain for scorer in resolved.misaligned}
    found = []
    for domain in domains:
        choices = [(False, (pool, probe), len(resolved.misaligned))]
        left = [scorer for scorer in resolved.misaligned if scorer.domain != domain]
        if domain in models and left:
            choices.append((True, _tables(source, (domain,)), len(left)))
        for held_out, (ordinary, misaligned), n_models in choices:
            for score in SCORES:
                one, two = scores_of(ordinary, score), scores_of(misaligned, score, domain)
                if min(len(one), len(two)) >= 2:
                    interval = auc_interval(one, two, seed=seed)
                    found.append(Separation(domain, score, held_out, interval, len(two), len(one), n_models))
    return found


def _statuses(store: Store, corpus: str, resolved: ResolvedScorers) -> dict[str, int]:
    assert resolved.aligned is not None
    with connect(store, [corpus]) as connection:
        rows = run_named(connection, "missing_losses", {"corpus": corpus}).table.to_pylist()
    found: dict[str, int] = {}
    for row in rows:  # one for each reason of a status
        if row["scorer_id"] == resolved.aligned.scorer_id:
            found[str(row["status"])] = found.get(str(row["status"]), 0) + int(row["n_rows"])
    return found


def _only_fitting(store: Store, corpus: str, resolved: ResolvedScorers) -> bool:
    """Whether the aligned scorer drew a sample of rows that fit its window: the others were passed over unrecorded."""
    assert resolved.aligned is not None
    sample = store.read_json(f"scores/{corpus}/{resolved.aligned.scorer_id}/scorer.json").get("sample")
    return bool(sample and sample.get("fit"))


def _noise(source: Source, resolved: ResolvedScorers, again: Again | None) -> dict[str, Any] | None:
    if again is not None:
        return _scored_again(source, resolved, again)
    checks = {}
    for name, scorer in _named(resolved).items():
        document = source.store.read_json(f"scores/{source.pool}/{scorer.scorer_id}/scorer.json")
        checks[name] = [item for item in document.get("checks", []) if item]
    return recorded_noise(checks)


def _named(resolved: ResolvedScorers) -> dict[str, Scorer]:
    """`aligned`, and every misaligned scorer by its id: two may share a label."""
    assert resolved.aligned is not None
    return {"aligned": resolved.aligned, **{item.scorer_id: item for item in resolved.misaligned}}


def _scored_again(source: Source, resolved: ResolvedScorers, again: Again) -> dict[str, Any]:
    """Stored losses against those of another path: the plain reference (transformers' own forward, one row at a time)
    shares neither kernels nor batch shapes with the engine. The engine run twice would differ by nothing."""
    from curator.scoring.engines.launch import TorchReferenceLaunch, torch_launch

    assert resolved.aligned is not None
    rendering = Renderer.from_store(source.store, resolved.aligned.renderer_id).settings
    renderer = Renderer.from_folder(again.model, settings=rendering)
    launch = torch_launch(again.model, "auto", resolved.aligned.identity["dtype"])
    adapters = adapters_of(again, resolved, renderer)
    table = gap_table(source.store, resolved)
    complete = [row for row in table.select(["example_id", "losses", "complete"]).to_pylist() if row["complete"]]
    keys = hash_keys([row["example_id"] for row in complete], 0, "calibration")
    chosen = [complete[index] for _, index in sorted(zip(keys, range(len(complete)), strict=True))[: again.n_rows]]
    messages = fetch_messages(source.store, source.pool, [row["example_id"] for row in chosen])
    rule = resolved.aligned.identity["mask_rule"]
    rendered = [renderer.render(messages[row["example_id"]], rule) for row in chosen]
    stored, found_again, path = {}, {}, ""
    models = _named(resolved)
    with Progress(len(models) * len(rendered), "rows", "scoring again") as progress:
        for name, scorer in models.items():
            other = TorchReferenceLaunch(again.model, adapters[scorer.scorer_id], launch.device, launch.dtype)()
            losses = other.score(rendered, on_rows=lambda n_rows, n_tokens: progress.advance(n_rows))
            path = other.name
            other.close()
            found_again[name] = np.array([loss.nll_sum / loss.n_response_tokens for loss in losses])
            stored[name] = np.array([_stored(row["losses"], scorer.scorer_id) for row in chosen])
    return noise(stored, found_again, f"the stored losses ({resolved.aligned.identity['engine']}) against {path}")


def _stored(losses: Sequence[Mapping[str, Any]], scorer_id: str) -> float:
    found = next(item for item in losses if item["scorer_id"] == scorer_id)
    return float(found["nll_sum"] / found["n_response_tokens"])


def markdown(found: Mapping[str, Any], command: str, machine: Mapping[str, Any]) -> str:
    """The card's page."""
    models = ", ".join(escape_markdown(f"{item['label']} ({item['role']})") for item in found["models"])
    lines = [
        f"Models: {models}; {found['dtype']}. Ordinary answers: corpus {escape_markdown(found['pool'])}; held-out "
        f"misaligned answers: corpus {escape_markdown(found['probe'])}.",
        "",
        "## Separation",
        "",
        "AUC: chance that an ordinary answer has the larger gap. 1 tells them apart, 0.5 is a coin, below is",
        "reversed. Held out: without the models of that domain, as a selection for a task of that domain is made. With",
        "a domain's own models the AUC also tells its subject and style from other text: only held-out rows speak of",
        "misalignment itself.",
        "",
        *table(
            ["domain", "score", "models", "AUC (95 % interval over rows)", "misaligned", "ordinary"],
            map(_separation_cells, found["separation"]),
        ),
        "",
        *_not_separated(found),
        "## Noise of the gap",
        "",
        *_noise_lines(found),
        "",
        "## Coverage",
        "",
        *table(
            ["corpus", "rows", "with a gap", "too long", "refusals v1", "refusals v2"],
            [_coverage_cells(name, item) for name, item in found["coverage"].items()],
        ),
        "",
    ]
    title = f"Calibration card: {escape_markdown(found['pool'])}"
    return results_page(title, finding(found), lines, written_by(command, machine))


def finding(found: Mapping[str, Any]) -> str:
    """How well the gap tells misaligned answers apart without the models of their own domain, in one sentence."""
    modelled = {item["domain"] for item in found["models"] if item["role"] == "misaligned"}
    judged = [item for item in found["separation"] if item["held_out"] or item["domain"] not in modelled]
    if not judged:
        return (
            "Whether the gap tells misaligned answers from ordinary ones is not known: that needs 2 rows of each with "
            "a gap, and misaligned models of another domain than the answers'."
        )
    least, most = (choose(judged, key=lambda item: item["auc"]["value"]) for choose in (min, max))
    sizes = sorted({item["n_misaligned"] for item in judged})
    unclear = [_where(item) for item in judged if item["auc"]["low"] <= 0.5]
    return (
        f"Of a misaligned and an ordinary answer, the gap picked out the misaligned one in {_percent(least)} "
        f"({_where(least)}) to {_percent(most)} ({_where(most)}) of pairs without a model of that domain, where a coin "
        f"does in 50 %{'; not clearly more: ' + ', '.join(unclear) if unclear else ''} "
        f"({'' if len(sizes) == 1 else f'{sizes[0]} to '}{sizes[-1]} misaligned answers of a domain, "
        f"{max(item['n_ordinary'] for item in judged):,} ordinary ones; part of it may be subject and style)."
    )


def _where(item: Mapping[str, Any]) -> str:
    return f"{escape_markdown(item['domain'])} by {item['score']}"


def _percent(item: Mapping[str, Any]) -> str:
    return f"{100 * item['auc']['value']:.0f} %"


def _not_separated(found: Mapping[str, Any]) -> list[str]:
    left = found["not_separated"]
    if not left:
        return []
    reported = ", ".join(f"{escape_markdown(name)} ({n} with a gap)" for name, n in left.items())
    return [f"Without an AUC, which needs 2 rows with a gap on either side: {reported}.", ""]


def _separation_cells(item: Mapping[str, Any]) -> list[object]:
    interval = item["auc"]
    models = f"{item['n_models']}, own held out" if item["held_out"] else f"all {item['n_models']}"
    figure = f"{interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"
    return [
        escape_markdown(item["domain"]), item["score"], models, figure, item["n_misaligned"], item["n_ordinary"],
    ]  # fmt: skip


def _noise_lines(found: Mapping[str, Any]) -> list[str]:
    noise_found, tied = found["noise"], found["ties"]
    if noise_found is None:
        return ["Not measured: the scoring runs re-scored nothing by request. Give --rescore N with --model."]
    near = ", ".join(f"{n} at {share}" for share, n in tied["rows_near_cut"].items())
    over = "" if tied["band_over_sd"] is None else f", {tied['band_over_sd']:.3f} of the gap's own standard deviation"
    return [
        f"gap_abs of {noise_found['n_rows']} rows, {noise_found['source']}: standard deviation {noise_found['sd']:.2e} "
        f"nats per token. Tie band (rows closer than this are not distinguished): {noise_found['tie_band']:.2e}{over}.",
        f"Of {tied['n_rows']} rows, within the band of the cut at a share of the pool: {near}.",
    ]


def _coverage_cells(name: str, item: Mapping[str, Any]) -> list[str]:
    refused = [f"{100 * item['share_refusals'][rule]:.1f} %" for rule in ("v1", "v2")]
    return [escape_markdown(name), f"{item['n_rows']:,}", f"{item['n_with_gap']:,}", _too_long(item), *refused]


def _too_long(item: Mapping[str, Any]) -> str:
    if item["too_long_unknown"] is not None:
        return f"not known: {item['too_long_unknown']}"
    of = "" if item["n_looked_at"] == item["n_rows"] else f" of {item['n_looked_at']:,}"
    return f"{100 * item['share_too_long']:.1f} %{of}"
