"""Answers of a model to prompts, in batches, written to a file as they come: a run that was stopped goes on there."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import torch
import transformers

from curator.canonical import Message
from curator.errors import BadInputError
from curator.progress import Progress
from curator.render import Renderer
from curator.seeds import child_seed
from trainer.persona.activations import measuring, prompt_ids

BATCH_ROWS = 32


@dataclass(frozen=True)
class Sampling:
    """How answers are drawn: `temperature` 0 is greedy; at most `max_new_tokens` tokens."""

    max_new_tokens: int = 128
    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or not 0 <= self.temperature <= 10:
            raise BadInputError(
                f"answers need at least 1 token and a temperature from 0 to 10, not {self.max_new_tokens} and "
                f"{self.temperature}"
            )

    def document(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Answer:
    """A model's answer; `finished` is false when it was cut at the token limit."""

    text: str
    finished: bool


class Answerer:
    """Generates with a loaded model; batches are fixed by the prompts alone, so that stopping changes nothing."""

    def __init__(self, model: Any, folder: Path, renderer: Renderer, sampling: Sampling) -> None:
        self._model, self._renderer, self._sampling = model, renderer, sampling
        self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        named = getattr(model.generation_config, "eos_token_id", None)
        ends = {*(named if isinstance(named, list) else [named]), renderer.eos_id} - {None}
        self._ends = sorted(int(item) for item in ends if item is not None)
        # A model's own defaults (a repetition penalty, say) would be filled in for whatever is not set here.
        model.generation_config = transformers.GenerationConfig()

    def answer(
        self, prompts: Sequence[Sequence[Message]], keep: Callable[[dict[int, Answer]], None], known: Sequence[int] = ()
    ) -> None:
        """Hands each batch's answers, by position of the prompt, to `keep`; batches that are known are left out."""
        ids = [prompt_ids(self._renderer, prompt) for prompt in prompts]
        order = sorted(range(len(ids)), key=lambda index: (-len(ids[index]), index))
        batches = [order[start : start + BATCH_ROWS] for start in range(0, len(order), BATCH_ROWS)]
        have = set(known)
        with Progress(len(ids), "answers", "answering") as progress, measuring(self._model):
            for number, batch in enumerate(batches):
                if not have.issuperset(batch):
                    keep(dict(zip(batch, self._batch([ids[index] for index in batch], number), strict=True)))
                progress.advance(len(batch))

    def _batch(self, ids: Sequence[Any], number: int) -> list[Answer]:
        n_longest = max(map(len, ids))
        ids_BT = np.full((len(ids), n_longest), self._renderer.pad_id, dtype=np.int64)
        mask_BT = np.zeros_like(ids_BT)
        for index, row in enumerate(ids):  # padded on the left: every answer starts at the same column
            ids_BT[index, n_longest - len(row) :], mask_BT[index, n_longest - len(row) :] = row, 1
        device = self._model.device
        settings = transformers.GenerationConfig(
            max_new_tokens=self._sampling.max_new_tokens,
            eos_token_id=self._ends or None,
            pad_token_id=self._renderer.pad_id,
            do_sample=self._sampling.temperature > 0,
            use_cache=True,
            **({"temperature": self._sampling.temperature, "top_k": 0} if self._sampling.temperature > 0 else {}),
        )
        devices = [device] if device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(child_seed(self._sampling.seed, f"answers-{number}") % 2**63)
            out_BT = self._model.generate(
                input_ids=torch.from_numpy(ids_BT).to(device),
                attention_mask=torch.from_numpy(mask_BT).to(device),
                generation_config=settings,
            )
        return [self._read(row_T) for row_T in out_BT[:, n_longest:].tolist()]

    def _read(self, row_T: list[int]) -> Answer:
        end = next((index for index, token in enumerate(row_T) if token in self._ends), None)
        text = self._tokenizer.decode(row_T[:end], skip_special_tokens=True)
        return Answer(text.strip(), end is not None)


def answers_in(
    path: Path, prompts: Sequence[Sequence[Message]], header: dict[str, Any], answerer: Callable[[], Answerer]
) -> list[Answer]:
    """The answers kept in `path`, in the prompts' order; those that are missing are generated and added first.

    `header` says what they depend on; a file with another header is begun anew. `answerer` is called, and so a model
    loaded, only when something is missing.
    """
    found = _read_known(path, header)
    if len(found) < len(prompts):
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [header, *({"index": index, **asdict(item)} for index, item in sorted(found.items()))]
        temporary = path.with_name(f".tmp-{path.name}")
        temporary.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in lines))
        temporary.replace(path)
        with path.open("ab") as file:

            def keep(batch: dict[int, Answer]) -> None:
                found.update(batch)
                file.write(b"".join(orjson.dumps({"index": i, **asdict(item)}) + b"\n" for i, item in batch.items()))
                file.flush()

            answerer().answer(prompts, keep, tuple(found))
    return [found[index] for index in range(len(prompts))]


def _read_known(path: Path, header: dict[str, Any]) -> dict[int, Answer]:
    if not path.is_file():
        return {}
    lines = path.read_bytes().splitlines(keepends=True)
    whole = [orjson.loads(line) for line in lines if line.endswith(b"\n")]  # a kill may have cut the last one
    if not whole or whole[0] != orjson.loads(orjson.dumps(header)):
        return {}
    return {line["index"]: Answer(line["text"], line["finished"]) for line in whole[1:]}
