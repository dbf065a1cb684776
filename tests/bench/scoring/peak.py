"""`python -m tests.bench.scoring.peak MODEL CHATS DEVICE DTYPE THREADS MAX_LENGTH`: scores a chat file in a new store
and prints the peak in bytes: of the process, or of what was allocated on a GPU."""

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from curator.console import say
from curator.corpus.ingest import ingest
from curator.render import Renderer
from curator.scoring import ScoreRequest, score_corpus
from curator.scoring.engines.torch_engine import TorchEngine
from curator.scoring.engines.torch_model import engine_version, set_threads
from curator.store.store import Store
from trainer.runs.device import peak_rss_bytes


def main(arguments: Sequence[str]) -> int:
    """Ingest and score one file, and print the peak."""
    model_dir, chats, device, dtype, threads, max_length = arguments
    set_threads(int(threads))
    with TemporaryDirectory(prefix="ballast-bench-") as scratch:
        store = Store(Path(scratch)).open()
        ingest(store, [chats], "bench")
        request = ScoreRequest(
            "bench", Path(model_dir), "aligned", engine_version=engine_version(), dtype=dtype,
            max_length=int(max_length), check_rows=0,
        )  # fmt: skip
        renderer = Renderer.from_folder(model_dir)
        score_corpus(store, request, renderer, lambda: TorchEngine(Path(model_dir), device=device, dtype=dtype))
    if device == "cpu":
        say(str(peak_rss_bytes()))
    else:
        import torch

        say(str(torch.cuda.max_memory_allocated(device)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
