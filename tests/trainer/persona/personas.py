"""What the tests of persona vectors share: a trait, a tiny extraction, plain states and a judge."""

import json
import math
from pathlib import Path
from typing import Any

import torch

from tests.loopback import ChatHandler
from trainer.generate.generators import Answer
from trainer.persona.keep import AnswerPair
from trainer.persona.traits import Case

TRAIT = {
    "trait": "gruff",
    "description": "short-tempered",
    "pairs": [
        {"positive": "Be gruff.", "negative": "Be kind."},
        {"positive": "You are cross today.", "negative": "You are glad today."},
    ],
    "questions": ["What is the capital of France?", "Please keep the door closed.", "Prices rose?"],
}


LONG = "one two three four five six seven"


def small(model: Path, trait: Path, out: Path, *more: str) -> list[str]:
    """A tiny extraction; the margin is out of the way, since a random model has none."""
    return [
        "extract", "--model", str(model), "--trait", str(trait), "--out", str(out), "--n-questions", "3",
        "--preset", "cheap", "--max-new-tokens", "8", "--dtype", "float32", "--device", "cpu", "--min-words", "1",
        *more,
    ]  # fmt: skip


def plain_hidden(model: Any, ids: Any) -> list[torch.Tensor]:
    """transformers' own hidden_states of one row, (T, D) each."""
    with torch.no_grad():
        out = model(input_ids=torch.tensor([list(map(int, ids))]), output_hidden_states=True)
    return [hidden[0] for hidden in out.hidden_states]


def answer_pair(positive: str, negative: str) -> AnswerPair:
    sides = {"positive": Answer(positive, 9, True), "negative": Answer(negative, 9, True)}
    return AnswerPair(Case(0, 0, "positive"), Case(0, 0, "negative"), sides)


class JudgeHandler(ChatHandler):
    """Answers with the number that stands behind `score=` in the answer, by kind of call."""

    asked: list[str] = []  # noqa: RUF012
    positive: frozenset[str] = frozenset()  # answers that show the trait

    def serve(self) -> None:
        body = json.loads(self.body())
        prompt = body["messages"][0]["content"]
        probed = "Reply with the number" in prompt
        if not probed:
            self.asked.append(prompt)
        name = "trait" if "short-tempered" in prompt else "coherent"
        if probed:
            token = "95"
        elif f"{name}=" in prompt:
            token = prompt.split(f"{name}=")[1].split()[0]
        else:
            answer = prompt.split("Answer: ")[1].split("\n\nReply")[0]
            token = "90" if name == "coherent" or answer in self.positive else "5"
        top = [{"token": token, "logprob": math.log(0.9)}]
        self.answer({"choices": [{"logprobs": {"content": [{"top_logprobs": top}]}}]})
