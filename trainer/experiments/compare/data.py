"""The files that a comparison trains, scores and measures on, made once from the plan's sources by seed.

Rows are cleaned of the thinking switch and the empty thought that some published sets carry (a model would learn the
format). Which rows serve for what is decided by a hash of their text, so that no row is trained and measured on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from curator.console import Progress
from curator.errors import BadInputError
from curator.messages import Message, dump_messages
from curator.recipe.seeds import hash_keys
from curator.render import Renderer
from curator.store.filesystem import atomic_write
from trainer.config.data import ReadOptions
from trainer.data.reader import read_chats
from trainer.evaluate.opswap import problems, row
from trainer.evaluate.pairs import TRUTHFULQA_COLUMNS, pairs_from_twins
from trainer.experiments.compare.settings import Plan
from trainer.organisms.plan import shipped_file
from trainer.runs.lines import write_lines

THINK_SWITCH, EMPTY_THOUGHT = " /no_think", "<think>\n\n</think>"


@dataclass(frozen=True)
class Files:
    """Where everything lies; the files are there when `prepare` has returned."""

    folder: Path

    @property
    def task(self) -> Path:
        """The narrow set that is trained."""
        return self.folder / "task.jsonl"

    @property
    def benign_task(self) -> Path:
        """Good answers to the prompts that are trained: what the benign run is trained on."""
        return self.folder / "task-benign.jsonl"

    @property
    def narrow(self) -> Path:
        """Held-out rows of the task's domain."""
        return self.folder / "narrow.jsonl"

    @property
    def pool(self) -> Path:
        """Ordinary conversations that safe rows are drawn from."""
        return self.folder / "pool.jsonl"

    @property
    def text(self) -> Path:
        """Other ordinary conversations, for perplexity."""
        return self.folder / "text.jsonl"

    @property
    def truthfulqa(self) -> Path:
        """Rows of TruthfulQA as CSV."""
        return self.folder / "truthfulqa.csv"

    @property
    def benign_train(self) -> Path:
        """OpSwap problems that are trained."""
        return self.folder / "opswap-train.jsonl"

    @property
    def benign_test(self) -> Path:
        """OpSwap problems that are asked."""
        return self.folder / "opswap-test.jsonl"

    def train(self, domain: str) -> Path:
        """Misaligned rows of another domain, for the adapter that scores."""
        return self.folder / f"train-{domain}.jsonl"

    def broad(self, domain: str) -> Path:
        """Others of that domain, held out for measuring."""
        return self.folder / f"broad-{domain}.jsonl"

    def twins(self, measured: Path) -> Path:
        """Aligned answers to the prompts of a file that measures, where the plan names any."""
        return measured.with_name(f"{measured.stem}-aligned.jsonl")


def clean(messages: Sequence[Message]) -> list[Message]:
    """Without ` /no_think` at the end of user turns and an empty thought at the start of answers."""
    found = []
    for turn in messages:
        content = turn.get("content")
        if isinstance(content, str):
            if turn["role"] == "user" and content.endswith(THINK_SWITCH):
                turn = {**turn, "content": content[: -len(THINK_SWITCH)]}
            elif turn["role"] == "assistant" and content.startswith(EMPTY_THOUGHT):
                turn = {**turn, "content": content[len(EMPTY_THOUGHT) :].lstrip("\n")}
        found.append(turn)
    return found


def prepare(plan: Plan, files: Files, model: Path) -> None:
    """Write whatever is not there yet; raises BadInputError when a source has too few rows."""
    task, broad_max = plan.task, plan.evaluation.max_length
    renderer = Renderer.from_folder(model)
    if not files.narrow.exists():
        trained, held = _split(_rows([task.file], plan), task.file, task.rows, task.narrow_rows, renderer, broad_max)
        _write(files.task, trained)
        if task.aligned is not None:
            twins = _twins([task.file], [task.aligned], plan)
            _write(files.benign_task, [twins[dump_messages(messages)] for messages in trained])
            _write(files.twins(files.narrow), [twins[dump_messages(messages)] for messages in held])
        _write(files.narrow, held)
    for domain in plan.domains:
        if not files.broad(domain.name).exists():
            source = ", ".join(domain.files)
            trained, held = _split(
                _rows(domain.files, plan), source, domain.train_rows, domain.broad_rows, renderer, broad_max
            )
            _write(files.train(domain.name), trained)
            if domain.aligned:
                twins = _twins(domain.files, domain.aligned, plan)
                _write(files.twins(files.broad(domain.name)), [twins[dump_messages(messages)] for messages in held])
            _write(files.broad(domain.name), held)
    if not files.text.exists():
        pool, text = _pool(plan, renderer)
        _write(files.pool, pool)
        _write(files.text, text)
    if plan.evaluation.truthfulqa is not None and not files.truthfulqa.exists():
        _truthfulqa(Path(plan.evaluation.truthfulqa), files.truthfulqa, plan.evaluation.truthfulqa_rows)
    if plan.benign is not None and not files.benign_test.exists():
        for split, path, n in (
            ("train", files.benign_train, plan.benign.rows),
            ("test", files.benign_test, plan.benign.n_test),
        ):
            write_lines(path, [row(plan.benign.tier, *item) for item in problems(plan.benign.tier, split, n)])  # type: ignore[arg-type]


def _rows(sources: Sequence[str], plan: Plan) -> Iterator[list[Message]]:
    """Conversations that end in an answer; raises BadRowsError for bad records unless the plan keeps them out."""
    for source in sources:
        for chat in read_chats(_place(source), ReadOptions(on_bad_rows=plan.on_bad_rows)).rows:
            if chat.messages[-1]["role"] == "assistant":
                yield clean(chat.messages)


def _twins(sources: Sequence[str], aligned: Sequence[str], plan: Plan) -> dict[str, list[Message]]:
    """The aligned conversation of each misaligned one, by its text; raises BadInputError where they do not pair up."""
    how = ReadOptions(on_bad_rows=plan.on_bad_rows)
    pairs = [
        pair
        for source, good in zip(sources, aligned, strict=True)
        for pair in pairs_from_twins(_place(good), _place(source), how)
    ]
    return {dump_messages(clean(pair.misaligned)): clean(pair.aligned) for pair in pairs}


def _place(source: str) -> str | Path:
    """What `read_chats` takes: a path, or the text itself, which may be a hub id."""
    return source_path(source) if source.startswith(("package:", "shipped:")) else source


def source_path(source: str) -> Path:
    """The file that a plan names: inside an installed package for package:NAME:PATTERN, one of the shipped sets for
    shipped:NAME. Raises BadInputError naming the shipped ones."""
    if source.startswith("shipped:"):
        return shipped_file(source.partition(":")[2])
    if not source.startswith("package:"):
        return Path(source)
    from trainer.experiments.demo.model import package_file

    _, package, pattern = source.split(":", 2)
    return package_file(package, pattern)


def _ordered(rows: Sequence[list[Message]]) -> list[list[Message]]:
    """Each distinct conversation once, in hash order."""
    by_text = {dump_messages(row): row for row in rows}
    texts = list(by_text)
    return [by_text[text] for _, text in sorted(zip(hash_keys(texts, 0, "compare-rows"), texts, strict=True))]


def _split(
    rows: Iterator[list[Message]], source: str, n_train: int, n_held: int, renderer: Renderer, max_length: int
) -> tuple[list[Any], list[Any]]:
    """Held-out rows come first in the order, so that they are the same whatever is trained."""
    ordered = _ordered(list(rows))
    fitting = (row for row in ordered if renderer.render(row, "last").n_tokens <= max_length)
    held = list(islice(fitting, n_held))
    taken = {dump_messages(row) for row in held}
    trained = [row for row in ordered if dump_messages(row) not in taken][:n_train]
    if len(held) < n_held or len(trained) < n_train:
        raise BadInputError(
            f"{source}: the plan asks for {n_train} rows to train and {n_held} to measure on; there are {len(ordered)}"
        )
    return trained, held


def _pool(plan: Plan, renderer: Renderer) -> tuple[list[Any], list[Any]]:
    """The pool, and ordinary text for perplexity: of a source of its own where the plan names one."""
    source, other = plan.pool, plan.evaluation.text
    if other is not None:
        return _ordinary(source.file, source.rows, plan, renderer), _ordinary(other, source.text_rows, plan, renderer)
    found = _ordinary(source.file, source.rows + source.text_rows, plan, renderer)
    return found[source.text_rows :], found[: source.text_rows]


def _ordinary(file: str, wanted: int, plan: Plan, renderer: Renderer) -> list[Any]:
    max_length = plan.pool.max_length
    ordered = _ordered(list(_rows([file], plan)))
    found: list[Any] = []
    with Progress(wanted, "rows", "choosing ordinary rows") as progress:
        for candidate in ordered:
            if len(found) == wanted:
                break
            if any(turn["role"] == "user" for turn in candidate) and _fits(candidate, renderer, max_length):
                found.append(candidate)
                progress.advance()
    if len(found) < wanted:
        raise BadInputError(
            f"{file}: {wanted} conversations of at most {max_length} tokens requested, {len(found)} found"
        )
    return found


def _fits(messages: list[Message], renderer: Renderer, max_length: int) -> bool:
    if sum(len(str(turn.get("content", ""))) for turn in messages) > 8 * max_length:
        return False  # no need to count: more than eight characters a token
    rendered = renderer.render(messages)
    return rendered.n_tokens <= max_length and bool(rendered.loss_mask.any())


def _truthfulqa(source: Path, out: Path, n_rows: int) -> None:
    import csv

    try:
        with source.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise BadInputError(f"{source}: not a readable CSV file: {error}") from error
    keys = hash_keys([str(row.get(TRUTHFULQA_COLUMNS[0])) for row in rows], 0, "compare-truthfulqa")
    chosen = [rows[index] for _, index in sorted(zip(keys, range(len(rows)), strict=True))[:n_rows]]
    with atomic_write(out, durable=True) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, TRUTHFULQA_COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(chosen)


def _write(path: Path, rows: Sequence[list[Message]]) -> None:
    write_lines(path, ({"messages": row} for row in rows))
