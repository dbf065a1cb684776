"""What is asked of a benchmark run."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from curator.errors import BadInputError
from tests.bench.scoring.shapes import LlamaShape


@dataclass(frozen=True)
class BenchRequest:
    """`rows` conversations of at most `max_length` tokens from a chat file, each scored `repeats` times by each
    contender. Without `adapter_dir` a seeded random LoRA of the published shape is used: speed is the same.
    `memory_rows` and ten times as many are scored in processes of their own for their peak memory; 0 leaves that out.
    With a `shape` the model is one of random weights in that shape, with the tokenizer of `model_dir`.
    `clock` "cpu" counts this process's CPU seconds: on cores that others use, waiting for them is not the code's time.
    """

    model_dir: Path
    corpus_file: Path
    adapter_dir: Path | None = None
    rows: int = 1_000
    repeats: int = 3
    max_length: int = 512
    device: str = "auto"
    dtype: str = "auto"
    threads: int | None = 1
    memory_rows: int = 64
    clock: Literal["wall", "cpu"] = "wall"
    shape: LlamaShape | None = None

    def __post_init__(self) -> None:
        for name, least in (("rows", 1), ("repeats", 1), ("max_length", 16), ("memory_rows", 0)):
            if getattr(self, name) < least:
                raise BadInputError(f"{name.replace('_', ' ')} {getattr(self, name)}: give at least {least}")
