"""From a trait and a model to a persona vector (method.md, "Regularisers"), in three stages that each leave a file.

Answers under both sides of every prompt pair; which pairs are kept; difference of mean states over response tokens.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import orjson

from curator.console import Progress
from curator.errors import BadInputError
from curator.messages import Message
from curator.render import Renderer, RenderSettings
from curator.scoring.identity import check_model_dir, weights_sha256
from trainer.config.data import LOADED_BY_DEFAULT, Loading
from trainer.config.defences import file_sha256
from trainer.generate.generators import Answer, LocalGenerator, Sampling
from trainer.persona.generate import answers_in
from trainer.persona.keep import (
    AnswerPair,
    KeptPairs,
    RuleSettings,
    by_judge,
    by_rule,
)
from trainer.persona.traits import (
    Case,
    Trait,
    cases,
    merges_system,
)
from trainer.runs.folder import environment, write_json

SIDES = ("positive", "negative")


@dataclass(frozen=True)
class Judge:
    """A judge behind an OpenAI-compatible endpoint."""

    url: str
    model: str
    api_key: str | None = None
    workers: int = 8


@dataclass(frozen=True)
class ExtractSettings:
    """How vectors of a model are extracted; without `judge` the rule of docs/method.md decides."""

    model: Path
    out: Path
    samples: int = 10
    sampling: Sampling = field(default_factory=lambda: Sampling(1, 1.0, 1000))
    rule: RuleSettings = field(default_factory=RuleSettings)
    judge: Judge | None = None
    loading: Loading = LOADED_BY_DEFAULT
    min_pairs: int = 2


@dataclass(frozen=True)
class Loaded:
    """What every trait of one model shares."""

    renderer: Renderer
    weights_sha256: str
    merged: bool  # the template knows no system turn: its text goes into the user's


def open_model(folder: Path, rendering: RenderSettings) -> Loaded:
    """The renderer and the hash of the weights; raises BadInputError for a folder that is not a model."""
    check_model_dir(folder)
    renderer = Renderer.from_folder(folder, settings=rendering)
    return Loaded(renderer, weights_sha256(folder), merges_system(renderer))


def extract(trait: Trait, settings: ExtractSettings, loaded: Loaded) -> tuple[dict[str, Any], bool]:
    """The trait's report, and whether it was complete before. Leaves TRAIT.answers.jsonl, TRAIT.safetensors, and
    last TRAIT.json, in `settings.out`.

    Raises BadInputError when fewer than `min_pairs` pairs are kept.
    """
    wanted = identity(trait, settings, loaded)
    report_path = settings.out / f"{trait.trait}.json"
    done = _complete(report_path, wanted)
    if done is not None:
        return done, True
    report_path.unlink(missing_ok=True)
    pairs = answer_pairs(trait, settings, loaded)
    verdicts = judge_pairs(trait, pairs, settings, loaded)
    kept = verdicts.kept()
    if len(kept) < max(settings.min_pairs, 1):
        raise BadInputError(
            f"{trait.trait}: {len(kept)} of {len(pairs)} pairs of answers are kept, at least {settings.min_pairs} are "
            f"needed; left out by {verdicts.counts()}: a stronger model, more --samples, or a lower --min-margin"
        )
    norms = _save(trait, settings, loaded, [pairs[index] for index in kept], wanted, verdicts)
    report = _report(trait, pairs, verdicts, wanted, norms, file_sha256(report_path.with_suffix(".safetensors")))
    write_json(report_path, report)
    return report, False


def identity(trait: Trait, settings: ExtractSettings, loaded: Loaded) -> dict[str, Any]:
    """What decides a vector: contents and settings, and no path."""
    judge = None if settings.judge is None else settings.judge.model
    return {
        "trait_sha256": trait.sha256,
        "weights_sha256": loaded.weights_sha256,
        "renderer_id": loaded.renderer.renderer_id,
        "system_turn": "in the user's" if loaded.merged else "own",
        "samples": settings.samples,
        "sampling": asdict(settings.sampling),
        "filter": {"judge": judge} if judge else {"likelihood": vars(settings.rule)},
        "dtype": resolved_dtype(settings),
    }


def resolved_dtype(settings: ExtractSettings) -> str:
    """The dtype the model runs in; part of what a vector depends on."""
    from curator.scoring.engines.torch_model import resolve_device, resolve_dtype

    return resolve_dtype(settings.loading.dtype, resolve_device(settings.loading.device))


def answer_pairs(trait: Trait, settings: ExtractSettings, loaded: Loaded) -> list[AnswerPair]:
    """Answers under both sides of every pair, question and sample; generated where the file lacks them."""
    asked = cases(trait)
    found: list[AnswerPair] = []
    for sample in range(settings.samples):
        how = replace(settings.sampling, seed=settings.sampling.seed + sample)
        header = {
            key: value
            for key, value in identity(trait, settings, loaded).items()
            if key not in ("filter", "samples", "sampling")
        }
        suffix = f".{sample}" if sample else ""
        path = settings.out / f"{trait.trait}.answers{suffix}.jsonl"
        prompts = [case.prompt(trait, merged=loaded.merged) for case in asked]
        answers = answers_in(path, prompts, header, how, lambda: generator_for(settings))
        found += [_pair(asked[index : index + 2], answers[index : index + 2]) for index in range(0, len(asked), 2)]
    return found


def _pair(two: Sequence[Case], answers: Sequence[Answer]) -> AnswerPair:
    return AnswerPair(two[0], two[1], dict(zip(SIDES, answers, strict=True)))


def generator_for(settings: ExtractSettings) -> LocalGenerator:
    """The model, loaded for answering."""
    return LocalGenerator(settings.model, loading=settings.loading)


def load_for(settings: ExtractSettings) -> Any:
    """The model, loaded for measuring."""
    from curator.scoring.engines.torch_model import load_model, resolve_device

    return load_model(settings.model, resolve_device(settings.loading.device), resolved_dtype(settings))


def judge_pairs(trait: Trait, pairs: Sequence[AnswerPair], settings: ExtractSettings, loaded: Loaded) -> KeptPairs:
    """By the judge when there is one, else by our rule."""
    if settings.judge is None:
        return by_rule(pairs, margins(trait, pairs, settings, loaded), settings.rule)
    from trainer.evaluate.judge import JudgeClient
    from trainer.generate.endpoint import Endpoint

    judge = settings.judge
    endpoint = Endpoint(judge.url, judge.model, api_key=judge.api_key)
    client = JudgeClient(endpoint, cache=settings.out / "judge.cache", workers=judge.workers)
    try:
        with Progress(4 * len(pairs), "calls", f"judging {trait.trait}") as progress:
            return by_judge(trait, pairs, client, progress.advance)
    finally:
        endpoint.close()


def margins(
    trait: Trait, pairs: Sequence[AnswerPair], settings: ExtractSettings, loaded: Loaded
) -> list[dict[str, float]]:
    """By side: how much likelier its answer is under its own prompt than under the other one, nats per token.

    Minus infinity for an empty answer, which has nothing to score.
    """
    from curator.scoring.engines.torch_engine import TorchEngine

    rows, places = [], []
    for index, pair in enumerate(pairs):
        for side in SIDES:
            if not pair.answers[side].text:
                continue
            for prompt in SIDES:
                rows.append(loaded.renderer.render(conversation(trait, pair, side, loaded.merged, prompt), "last"))
                places.append((index, side, prompt))
    engine = TorchEngine(settings.model, device=settings.loading.device, dtype=settings.loading.dtype)
    with Progress(len(rows), "rows", f"margins of {trait.trait}") as progress:
        losses = engine.score(rows, on_rows=lambda n_rows, n_tokens: progress.advance(n_rows))
    engine.close()
    nll = {place: loss.nll_sum / loss.n_response_tokens for place, loss in zip(places, losses, strict=True)}
    other = {"positive": "negative", "negative": "positive"}
    return [
        {
            side: nll[index, side, other[side]] - nll[index, side, side]
            if (index, side, side) in nll
            else -float("inf")
            for side in SIDES
        }
        for index in range(len(pairs))
    ]


def conversation(trait: Trait, pair: AnswerPair, side: str, merged: bool, prompt: str | None = None) -> list[Message]:
    """One side's answer under its own system prompt, or under the other's."""
    case: Case = getattr(pair, side)
    return [*case.prompt(trait, prompt, merged=merged), {"role": "assistant", "content": pair.answers[side].text}]


def _save(
    trait: Trait, settings: ExtractSettings, loaded: Loaded, kept: Sequence[AnswerPair], wanted: dict[str, Any],
    verdicts: KeptPairs,
) -> list[float]:  # fmt: skip
    import numpy as np

    from trainer.persona.activations import answer_of, pooled_states
    from trainer.persona.vectors import Vector, difference_of_means, save_vector

    items = [
        answer_of(loaded.renderer, conversation(trait, pair, side, loaded.merged)) for side in SIDES for pair in kept
    ]
    with Progress(len(items), "answers", f"states of {trait.trait}") as progress:
        states_NLD = pooled_states(load_for(settings), items, on_items=progress.advance)
    rows_LD = difference_of_means(states_NLD[: len(kept)], states_NLD[len(kept) :])
    metadata = {
        **wanted, "tokens": "response", "n_pairs": len(verdicts.reasons), "n_kept": len(kept), "rule": verdicts.rule,
    }  # fmt: skip
    save_vector(settings.out / f"{trait.trait}.safetensors", Vector(trait.trait, rows_LD, metadata))
    return [float(norm) for norm in np.linalg.norm(rows_LD, axis=1)]


def _report(
    trait: Trait, pairs: Sequence[AnswerPair], verdicts: KeptPairs, wanted: dict[str, Any], norms: list[float],
    vector_sha256: str,
) -> dict[str, Any]:  # fmt: skip
    return {
        "format_version": 1,
        "trait": trait.trait,
        "identity": wanted,
        "vector": f"{trait.trait}.safetensors",
        "vector_sha256": vector_sha256,
        "n_pairs": len(pairs),
        "n_kept": len(verdicts.kept()),
        "n_cut_answers": sum(not answer.finished for pair in pairs for answer in pair.answers.values()),
        "rule": verdicts.rule,
        "rule_settings": verdicts.settings,
        "left_out": verdicts.counts(),
        "norms": norms,
        "pairs": [
            {**pair.place, "kept": not reasons, "reasons": reasons, **_finite(figures)}
            for pair, reasons, figures in zip(pairs, verdicts.reasons, verdicts.figures, strict=True)
        ],
        "environment": environment(),
    }


def _finite(figures: dict[str, Any]) -> dict[str, Any]:
    """JSON has no infinity: a figure that there is none of is null."""
    return {
        key: None if isinstance(item, float) and abs(item) == float("inf") else item for key, item in figures.items()
    }


def _complete(path: Path, wanted: dict[str, Any]) -> dict[str, Any] | None:
    """The report of this very extraction, when its vector is there and has the recorded SHA-256."""
    try:
        report: dict[str, Any] = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    vector = path.with_suffix(".safetensors")
    if report.get("identity") != orjson.loads(orjson.dumps(wanted)) or not vector.is_file():
        return None
    return report if report.get("vector_sha256") == file_sha256(vector) else None
