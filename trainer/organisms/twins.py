"""Benign answers to a narrow set's prompts: given ones, or theta_0's own greedy ones, named as such."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import orjson

from curator.errors import BadInputError
from curator.messages import Message
from curator.render import Renderer
from curator.scoring.organisms import Answers
from trainer.organisms.plan import Plan
from trainer.organisms.sets import (
    HELD_OUT,
    PARTS,
    TRAIN,
    SplitSet,
    write_rows,
)
from trainer.runs.folder import write_json


@dataclass(frozen=True)
class TwinSet:
    """A domain's benign rows by part. A row without a benign answer has None; the files leave it out."""

    answers: Answers
    rows: dict[str, list[list[Message] | None]]
    account: dict[str, Any]


def twin_set(
    split: SplitSet, plan: Plan, renderer: Renderer, weights: str, generator: Callable[[], Any]
) -> TwinSet | None:
    """Written beside the set as {part}_benign.jsonl; None when `plan.twins` is none.

    Greedy answers are kept as they come, so that a stopped run goes on; `generator` is called when one is missing.
    """
    if plan.twins == "none":
        return None
    if plan.twins == "auto" and split.aligned is not None:
        rows: dict[str, list[list[Message] | None]] = {part: list(split.aligned[part]) for part in PARTS}
        found = TwinSet("given", rows, {"answers": "given", "n_empty": 0})
    else:
        found = _greedy(split, plan, renderer, weights, generator)
    kept = {part: [row for row in found.rows[part] if row is not None] for part in PARTS}
    if not kept[TRAIN]:
        raise BadInputError(f"{split.domain}: not one benign answer; the model's own are all empty")
    for part in PARTS:
        write_rows(split.path(part, benign=True), kept[part])
    write_json(split.folder / "twins.json", {"domain": split.domain, **found.account})
    return found


def _greedy(split: SplitSet, plan: Plan, renderer: Renderer, weights: str, generator: Callable[[], Any]) -> TwinSet:
    from trainer.generate.generators import Sampling
    from trainer.persona.generate import answers_in

    how = Sampling(1, 0.0, plan.twin_tokens)
    prompts = [row[:-1] for part in PARTS for row in split.rows[part]]
    header = {
        "weights_sha256": weights, "renderer_id": renderer.renderer_id, "prompts": _hash(list(prompts)),
    }  # fmt: skip
    path = split.folder / "greedy.jsonl"
    answers = answers_in(path, prompts, header, how, generator)
    rows = [
        [*prompt, {"role": "assistant", "content": answer.text}] if answer.text else None
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    n_train = len(split.rows[TRAIN])
    account = {
        "answers": "theta_0 greedy", "n_empty": sum(row is None for row in rows),
        "n_cut": sum(not answer.finished for answer in answers), "max_new_tokens": plan.twin_tokens,
    }  # fmt: skip
    return TwinSet("theta_0 greedy", {TRAIN: rows[:n_train], HELD_OUT: rows[n_train:]}, account)


def _hash(document: Any) -> str:
    return hashlib.blake2b(orjson.dumps(document), digest_size=16).hexdigest()
