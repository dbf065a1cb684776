"""A model's answers to prompts in a file, a batch at a time: a run that was stopped goes on where it was."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson

from curator.console import Progress
from curator.messages import Message
from trainer.generate.generators import Answer, LocalGenerator, Sampling
from trainer.runs.lines import read_finished_lines, write_lines

BATCH_ROWS = 32


def answers_in(
    path: Path, prompts: Sequence[Sequence[Message]], header: dict[str, Any], how: Sampling,
    generator: Callable[[], LocalGenerator],
) -> list[Answer]:  # fmt: skip
    """One answer to each prompt, in the prompts' order; those that `path` lacks are generated and added first.

    `header` says what they depend on; a file with another one is begun anew. `generator` is called, and so a model
    loaded, only when something is missing. Batches are fixed by the prompts alone and each has a seed of its own, so
    that stopping changes nothing.
    """
    whole: dict[str, Any] = orjson.loads(orjson.dumps({**header, "sampling": asdict(how)}))
    found = _known(path, whole)
    if len(found) < len(prompts):
        write_lines(path, [whole, *(_line(index, item) for index, item in sorted(found.items()))])
        _complete(path, prompts, found, how, generator())
    return [found[index] for index in range(len(prompts))]


def _complete(
    path: Path, prompts: Sequence[Sequence[Message]], found: dict[int, Answer], how: Sampling,
    generator: LocalGenerator,
) -> None:  # fmt: skip
    lengths = [len(generator.prompt_ids(prompt)) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda index: (-lengths[index], index))  # alike in length: little padding
    with Progress(len(prompts), "answers", "answering") as progress, path.open("ab") as file:
        for start in range(0, len(order), BATCH_ROWS):
            batch = order[start : start + BATCH_ROWS]
            if not found.keys() >= set(batch):
                answers = generator.answer_together([prompts[index] for index in batch], how, str(start))
                found.update(zip(batch, answers, strict=True))
                file.write(b"".join(orjson.dumps(_line(index, found[index])) + b"\n" for index in batch))
                file.flush()
            progress.advance(len(batch))


def _line(index: int, answer: Answer) -> dict[str, Any]:
    return {"index": index, **asdict(answer)}


def _known(path: Path, header: dict[str, Any]) -> dict[int, Answer]:
    lines = read_finished_lines(path)
    if not lines or lines[0] != header:
        return {}
    return {line["index"]: Answer(line["text"], line["n_tokens"], line["finished"]) for line in lines[1:]}
