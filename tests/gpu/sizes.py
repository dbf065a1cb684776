"""What is measured: on a GPU the shapes that matter, in a rehearsal on a CPU the same steps with tiny ones."""

from dataclasses import dataclass
from pathlib import Path

from tests.trainer.shapes import Shape


@dataclass(frozen=True)
class Sizes:
    """Shapes, rows and lengths (tokens). `micro_batch` is rows by tokens by trained tokens of a row."""

    throughput: Shape
    exact_rows: int
    timed_rows: int
    words: int  # of a turn in those rows, on average
    max_length: int
    gemm: int  # side of the square matrices that the machine's own rate is measured with
    seven: Shape
    micro_batch: tuple[int, int, int]
    steps: int


ON_GPU = Sizes(
    throughput=Shape(2048, 16, 8192, 32, 8, 128_000), exact_rows=64, timed_rows=1_000, words=150, max_length=2048,
    gemm=8192, seven=Shape(3584, 28, 18944, 28, 4, 152_064), micro_batch=(4, 1024, 512), steps=3,
)  # fmt: skip
REHEARSAL = Sizes(
    throughput=Shape(64, 2, 128, 2, 1, 800), exact_rows=6, timed_rows=8, words=6, max_length=256, gemm=64,
    seven=Shape(64, 5, 128, 2, 1, 800), micro_batch=(2, 48, 20), steps=3,
)  # fmt: skip


@dataclass(frozen=True)
class Bench:
    """One run of the check: its sizes, where it computes, and a folder for models and rows."""

    sizes: Sizes
    device: str
    dtype: str
    work: Path
    smollm: Path | None

    @property
    def on_gpu(self) -> bool:
        """Whether this is the real thing."""
        return self.device.startswith("cuda")
