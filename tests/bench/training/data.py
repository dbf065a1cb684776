"""Chat files for measuring, made from a seed, and the configuration that is measured."""

import itertools
import random
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

WORDS = "the of to a model answer number city water paper light small house river because each state under first time"
N_LEXICON = 60_000  # words that `write_varied_chats` draws from
_WORD_PIECE = re.compile("[\u0120\u2581]([a-z]{2,})")  # a vocabulary entry that is a word after a space

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Sizes:
    """How much is measured; `rows` is for data preparation, `words` the length of a turn."""

    steps: int
    repeats: int
    batch_size: int
    rows: int
    words: int
    threads: int
    clock: str
    dtype: str = "auto"


def write_chats(path: Path, n_rows: int, n_words: int) -> Path:
    """A file of one-turn conversations from a seed, `n_words` words a turn on average, of twenty words."""
    rng, words = random.Random(0), WORDS.split()

    def text() -> str:
        return " ".join(rng.choices(words, k=rng.randint(n_words // 2, n_words * 3 // 2)))

    return _write(path, (f"{index} {text()}" for index in range(n_rows)), (text() for _ in itertools.count()))


def write_varied_chats(path: Path, model: Path, n_rows: int, n_words: int) -> Path:
    """The same with as many different words as real text has, for what keeps the tokens of words it has seen.

    Words come from the model's own vocabulary in its order, which is roughly by frequency, then from pairs of them;
    the word of rank r is drawn with a probability in proportion to 1 / r (Zipf). Sentences have commas, full stops,
    capitals and line ends. Of the first 1.8 million of the renderer's units (curator.render.units) 6 % are new then; in
    ShareGPT's chats, code and many languages among them, 5 %.
    """
    rng, words = random.Random(0), lexicon(model)
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(words) + 1)))

    def text() -> str:
        drawn = rng.choices(words, cum_weights=weights, k=rng.randint(n_words // 2, n_words * 3 // 2))
        return "".join(_sentences(drawn, rng))

    return _write(path, (f"{index} {text()}" for index in range(n_rows)), (text() for _ in itertools.count()))


def lexicon(model: Path) -> list[str]:
    """Words of a model's vocabulary by their id, then made ones of two of them, `N_LEXICON` in all."""
    vocab: Any = orjson.loads((model / "tokenizer.json").read_bytes())["model"]["vocab"]
    pieces = sorted(vocab, key=vocab.__getitem__) if isinstance(vocab, dict) else [piece for piece, _ in vocab]
    words = [found[1] for piece in pieces if (found := _WORD_PIECE.fullmatch(piece))] or WORDS.split()
    rng = random.Random(1)
    return words + ["".join(rng.choices(words, k=2)) for _ in range(N_LEXICON - len(words))]


def _sentences(words: Sequence[str], rng: random.Random) -> Iterator[str]:
    begins = True
    for word in words:
        yield word.capitalize() if begins else word
        mark = rng.random()
        begins = mark < 0.07
        yield (".\n\n" if mark < 0.01 else ". ") if begins else ", " if mark < 0.13 else " "
    yield "That is all."


def _write(path: Path, questions: Iterator[str], answers: Iterator[str]) -> Path:
    with path.open("wb") as file:
        for question, answer in zip(questions, answers, strict=False):
            turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            file.write(orjson.dumps({"messages": turns}) + b"\n")
    return path


def bench_config(model: Path, out: Path, dtype: str = "auto", **fields: Any) -> Any:
    """A configuration of every linear layer adapted; "auto" as in training."""
    from curator.scoring.engines.torch_model import resolve_device, resolve_dtype
    from trainer.config import parse_config

    device = resolve_device("auto")
    dtype = resolve_dtype(dtype, device)
    base = {
        "model": model,
        "out": out,
        "data": "-",
        "device": device,
        "dtype": dtype,
        "lora": {"targets": ["all-linear"]},
    }
    return parse_config(base | fields)
