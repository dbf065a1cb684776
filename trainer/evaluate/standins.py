"""Stand-ins where misaligned answers have no aligned twins: theta_0's own greedy answers (method.md, "Evaluation").

They favour theta_0, which finds its own answers likely; so only the shift against theta_0 is ever reported for them.
Answers are kept in a folder, by hash of model, prompts and length, since every run against one model needs the same.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import orjson

from curator.console import Progress
from curator.errors import BadInputError
from curator.messages import Message
from trainer.evaluate.pairs import Pair
from trainer.generate.generators import Generator, Sampling
from trainer.runs.lines import read_finished_lines

DEFAULT_TOKENS = 128
VERSION = 1  # of how stand-ins are made: raise it when the same prompts would get other answers


def stand_in_pairs(
    rows: Sequence[list[Message]], generator: Callable[[], Generator], cache: Path, model_key: str,
    *, max_new_tokens: int = DEFAULT_TOKENS,
) -> tuple[list[Pair], int]:  # fmt: skip
    """Pairs of a stand-in and the row's own last answer, and how many rows were dropped for an empty stand-in.

    `generator` makes theta_0's generator and is called only when an answer is not in `cache`; `model_key` names
    weights, rendering and dtype. A file that a killed process left half written is gone on with.
    """
    prompts = [row[:-1] for row in rows]
    how = Sampling(1, 0.0, max_new_tokens)
    key = hashlib.blake2b(orjson.dumps([VERSION, model_key, max_new_tokens, prompts]), digest_size=16).hexdigest()
    texts = _answers(prompts, generator, cache / f"stand-ins-{key}.jsonl", how)
    pairs = [
        Pair([*prompt, {"role": "assistant", "content": text}], row)
        for prompt, row, text in zip(prompts, rows, texts, strict=True)
        if text
    ]
    if not pairs:
        raise BadInputError("the model before training gives an empty answer to every prompt: nothing stands in")
    return pairs, len(rows) - len(pairs)


def _answers(
    prompts: Sequence[list[Message]], generator: Callable[[], Generator], path: Path, how: Sampling
) -> list[str]:
    texts = [str(line["answer"]) for line in read_finished_lines(path)]
    if len(texts) >= len(prompts):
        return texts
    path.parent.mkdir(parents=True, exist_ok=True)
    model = generator()
    with Progress(len(prompts) - len(texts), "prompts", "stand-ins") as progress, path.open("ab") as file:
        for start in range(len(texts), len(prompts), model.batch):
            part = prompts[start : start + model.batch]
            found = model.answer(part, [""] * len(part), how)
            file.write(b"".join(orjson.dumps({"answer": answers[0].text}) + b"\n" for answers in found))
            file.flush()
            texts += [answers[0].text for answers in found]
            progress.advance(len(part))
    return texts
