"""Data sets that a command measures on: every format, and the rule for bad rows of `trainer.sft --data`, in memory."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from curator.console import list_problems
from curator.corpus.formats import MAX_LISTED_REJECTS, Reject, Row, locate, read_rows
from curator.corpus.task_set import check_bad_rows
from curator.errors import RenderError
from curator.render import PARTS, MaskRule, Rendered, Renderer
from trainer.config.data import AS_DETECTED, ReadOptions
from trainer.data.rows import MAX_LISTED


@dataclass(frozen=True)
class Chats:
    """The usable rows of a data set, in its order; a row's `record` counts bad ones too."""

    name: str  # of the data set, without its folder
    rows: list[Row]
    n_bad: int

    @property
    def n_records(self) -> int:
        """Records read, bad ones too."""
        return len(self.rows) + self.n_bad


def read_chats(source: str | Path, how: ReadOptions = AS_DETECTED) -> Chats:
    """A chat file, a folder that datasets saved, or (given as text) a data set of the hub.

    Bad records are listed on stderr (capped). Raises BadRowsError for them unless they are to be kept out, and what
    `read_rows` raises for a data set that cannot be read.
    """
    name = locate(source).name
    rows, rejects, n_bad = list[Row](), list[Reject](), 0
    for item in read_rows(source, format=how.data_format, layout=how.data_layout):
        if isinstance(item, Row):
            rows.append(item)
            continue
        n_bad += 1
        if len(rejects) < MAX_LISTED_REJECTS:
            rejects.append(item)
    list_problems([problem for reject in rejects for problem in reject.as_dicts()][:MAX_LISTED])
    check_bad_rows(len(rows), n_bad, rejects, how.on_bad_rows, f"rows of {name}")
    return Chats(name, rows, n_bad)


def render_row(renderer: Renderer, row: Row, mask_rule: MaskRule = "all") -> Rendered:
    """A row's tokens; raises RenderError that names the row's place in its file."""
    try:
        return renderer.render(row.messages, mask_rule)
    except RenderError as error:
        raise RenderError(f"{row.place()}: {error.message}", reason=error.reason, details=error.details) from error


def dropped_counts(rendered: Iterable[Rendered]) -> dict[str, int]:
    """Rows by the part that the chat template leaves out of them, as was accepted; empty without any."""
    counts = Counter(part for row in rendered for part in row.dropped)
    return {part: counts[part] for part in PARTS if counts[part]}
