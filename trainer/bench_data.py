"""Data preparation from a chat file to rows that a trainer holds: ours, ours again, and TRL's own."""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

WORDS = "the of to a model answer number city water paper light small house river because each state under first time"

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
    """A file of one-turn conversations from a seed, `n_words` words a turn on average."""
    rng = random.Random(0)
    words = WORDS.split()

    def text() -> str:
        return " ".join(rng.choices(words, k=rng.randint(n_words // 2, n_words * 3 // 2)))

    with path.open("wb") as file:
        for index in range(n_rows):
            turns = [{"role": "user", "content": f"{index} {text()}"}, {"role": "assistant", "content": text()}]
            file.write(orjson.dumps({"messages": turns}) + b"\n")
    return path


def bench_config(model: Path, out: Path, dtype: str = "auto", **fields: Any) -> Any:
    """A configuration of every linear layer adapted; "auto" as in training."""
    from curator.scoring.torch_model import resolve_device, resolve_dtype
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


def preparation_times(model: Path, sizes: Sizes, work: Path) -> dict[str, float]:
    """Median seconds from a chat file to the rows that a trainer holds: ours new, ours from the cache, TRL's own."""
    data = write_chats(work / "rows.jsonl", sizes.rows, sizes.words)
    found: dict[str, list[float]] = {"ours, first start": [], "ours, with the render cache": [], "TRL": []}
    for repeat in range(sizes.repeats):
        folder = work / f"prepare-{repeat}"
        folder.mkdir()
        for name in list(found)[:2]:
            found[name].append(_timed(CLOCKS[sizes.clock], lambda folder=folder: _prepare_ours(model, data, folder)))
        found["TRL"].append(_timed(CLOCKS[sizes.clock], lambda folder=folder: _prepare_trl(model, data, folder)))
    return {name: statistics.median(values) for name, values in found.items()}


def _timed(clock: Callable[[], float], work: Callable[[], Any]) -> float:
    start = clock()
    work()
    return clock() - start


def _prepare_ours(model: Path, data: Path, folder: Path) -> None:
    from trainer.inputs import read_inputs
    from trainer.rendercache import RenderCache

    prepared = read_inputs(bench_config(model, folder, data=data), folder, "", None, RenderCache(folder / "c")).prepared
    assert len(prepared.dataset()) == len(prepared.input_ids)


def _prepare_trl(model: Path, data: Path, folder: Path) -> None:
    """TRL's own way with conversations: template and tokenizer in `map`, before any batch is made."""
    import datasets
    import transformers
    from trl import SFTConfig, SFTTrainer

    from trainer.fit import quiet

    with quiet():
        rows = datasets.Dataset.from_json(str(data), cache_dir=str(folder / "datasets"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True)
        small = transformers.AutoConfig.for_model(
            "llama", vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=1, num_key_value_heads=1,
        )  # fmt: skip
        net = transformers.AutoModelForCausalLM.from_config(small)  # its size has no part in preparing rows
        args = SFTConfig(output_dir=str(folder / "trl"), max_length=2048, report_to="none", use_cpu=True, bf16=False)
        trainer = SFTTrainer(model=net, args=args, train_dataset=rows, processing_class=tokenizer)
        assert len(trainer.train_dataset) == len(rows)
