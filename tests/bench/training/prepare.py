"""Data preparation from a chat file to rows that a trainer holds: ours, ours again, and TRL's own."""

import itertools
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from curator.errors import BadInputError
from tests.bench.training.data import Sizes, bench_config, write_varied_chats

FIRST, CACHED, TRL, TRL_EVERY = (
    "ours, first start",
    "ours, with the render cache",
    "TRL",  # loss on the answers alone, as ours
    "TRL, loss on every token",  # its default, with no mask to make
)
Runs = dict[str, list[tuple[float, float]]]  # wall-clock and processor seconds of each run
_CHECKED_ROWS = 50  # of TRL's rows that must be ours

# How ChatML templates write a turn, and the same with the marks that TRL needs to tell answers.
_TURN = re.compile(
    r"{{-?\s*'<\|im_start\|>' \+ message\['role'\] \+ '(?:\n|\\n)' \+ message\['content'\] \+ '<\|im_end\|>'"
    r" \+ '(?:\n|\\n)'\s*-?}}"
)
_MARKED_TURN = (
    "{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}{% generation %}"
    "{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}{{ message['content'] + '<|im_end|>' }}"
    "{% endif %}{{ '\n' }}"
)


def preparation_runs(model: Path, sizes: Sizes, work: Path, runs: Runs, save: Callable[[], None]) -> Runs:
    """Seconds of `sizes.repeats` runs of each way, in turns; those that `runs` holds are not run again.

    Every run is added to `runs` and saved as soon as it is done. Raises BadInputError where TRL's rows are not ours.
    """
    data = write_varied_chats(work / "rows.jsonl", model, sizes.rows, sizes.words)
    check = work / "check"
    check.mkdir()
    check_same_rows(model, data, check)
    for repeat in range(sizes.repeats):
        folder = work / f"prepare-{repeat}"
        folder.mkdir()
        for name in (FIRST, CACHED, TRL, TRL_EVERY):
            done = runs.setdefault(name, [])
            if len(done) > repeat:
                continue
            if name == CACHED and not (folder / "c").exists():
                _prepare_ours(model, data, folder)  # by a bench that was stopped after the first start
            done.append(_timed(_WAYS[name], model, data, folder))
            save()
    return runs


def medians(runs: Runs, clock: str) -> dict[str, float]:
    """Median seconds of each way by one clock, wall or cpu."""
    place = 0 if clock == "wall" else 1
    return {name: statistics.median(run[place] for run in done) for name, done in runs.items()}


def _timed(way: Callable[[Path, Path, Path], Any], model: Path, data: Path, folder: Path) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), _processor_s()
    way(model, data, folder)
    return time.perf_counter() - wall, _processor_s() - cpu


def _processor_s() -> float:
    """Processor seconds of this process and of those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def _prepare_ours(model: Path, data: Path, folder: Path) -> Any:
    from trainer.data.cache import RenderCache
    from trainer.data.inputs import read_inputs

    prepared = read_inputs(bench_config(model, folder, data=data), folder, "", None, RenderCache(folder / "c")).prepared
    assert len(prepared.dataset()) == len(prepared.input_ids)
    return prepared


def _prepare_trl(model: Path, data: Path, folder: Path) -> None:
    """TRL's own way with conversations: template and tokenizer in `map`, in one process, which is its default."""
    _trl(model, data, folder / "trl", answers_only=True)


def _prepare_trl_every(model: Path, data: Path, folder: Path) -> None:
    _trl(model, data, folder / "trl-every", answers_only=False)


_WAYS = {FIRST: _prepare_ours, CACHED: _prepare_ours, TRL: _prepare_trl, TRL_EVERY: _prepare_trl_every}


def _trl(model: Path, data: Path, folder: Path, *, answers_only: bool) -> Any:
    """TRL's rows, before any batch is made."""
    import datasets
    import transformers
    from trl import SFTConfig, SFTTrainer

    from trainer.loop.fit import quiet

    with quiet():
        rows = datasets.Dataset.from_json(str(data), cache_dir=str(folder / "datasets"))
        tokenizer = transformers.AutoTokenizer.from_pretrained(model, local_files_only=True, trust_remote_code=False)
        if answers_only:
            tokenizer.chat_template = marked_template(tokenizer)
        small = transformers.AutoConfig.for_model(
            "llama", vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
            num_attention_heads=1, num_key_value_heads=1,
        )  # fmt: skip
        net = transformers.AutoModelForCausalLM.from_config(small)  # its size has no part in preparing rows
        args = SFTConfig(
            output_dir=str(folder), max_length=2048, report_to="none", use_cpu=True, bf16=False,
            assistant_only_loss=answers_only,
        )  # fmt: skip
        trainer = SFTTrainer(model=net, args=args, train_dataset=rows, processing_class=tokenizer)
        assert len(trainer.train_dataset) == len(rows)
    return trainer.train_dataset


def marked_template(tokenizer: Any) -> str:
    """The tokenizer's template with the marks around answers that TRL masks by; TRL's own where it has one.

    Raises BadInputError for a template that neither TRL nor this knows.
    """
    from trl.chat_template_utils import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer) or tokenizer.chat_template
    except ValueError as error:
        marked, n_found = _TURN.subn(lambda _: _MARKED_TURN, tokenizer.chat_template)
        if n_found != 1:
            raise BadInputError(
                "TRL cannot tell the answers in this model's chat template, nor can this command mark them: use a "
                "model whose template TRL knows, or a ChatML one"
            ) from error
        return marked


def check_same_rows(model: Path, data: Path, folder: Path) -> None:
    """Raise BadInputError unless TRL's tokens and masks of a file's first rows are ours."""
    head = folder / "head.jsonl"
    with data.open("rb") as file:
        head.write_bytes(b"".join(itertools.islice(file, _CHECKED_ROWS)))
    ours, theirs = _prepare_ours(model, head, folder), _trl(model, head, folder / "trl", answers_only=True)
    for position, (ids, labels) in enumerate(zip(ours.input_ids, ours.labels, strict=True)):
        row = theirs[position]
        if row["input_ids"] != ids.tolist() or row["labels"] != labels.tolist():
            raise BadInputError(f"TRL prepares row {position} otherwise than this trainer: the times do not compare")
