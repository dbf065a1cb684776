"""Checking a training file as it arrives: the product's reader, and what an endpoint of the OpenAI form checks.

Both run in a process of its own, with bounds. A file is refused whole, with every bad line.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from curator.audit.openai_checks import CHECKS, line_faults
from curator.corpus.formats import ReadLimits
from curator.corpus.task_set import TaskSet, read_task_set

MAX_FAULTS = 100_000  # lines of a report
_ENOUGH = "invalid_n_examples"


@dataclass
class Checked:
    """A file's rows, and what is wrong with it: one fault for each line and code, in the order of lines."""

    task_set: TaskSet
    faults: list[dict[str, Any]] = field(default_factory=list)

    @property
    def code(self) -> str:
        """The code of the refusal."""
        return _ENOUGH if all(fault["code"] == _ENOUGH for fault in self.faults) else "invalid_training_file"

    @property
    def n_bad_lines(self) -> int:
        """Lines with at least one fault."""
        return len({fault["line"] for fault in self.faults if fault["code"] != _ENOUGH})

    def message(self) -> str:
        """The first fault in the words that clients of OpenAI match."""
        first = self.faults[0]
        if self.code == _ENOUGH:
            n_examples = first["message"].split()[0]
            return f"Training file has {n_examples} example(s), but must have at least 10 examples"
        if first["code"] == "invalid_jsonl":
            start = f"{CHECKS['invalid_jsonl']}. {first['message']}"
        else:
            start = f"Invalid file format. Line {first['line']}: {first['message']} ({first['code']})"
        return f"{start}; {self.n_bad_lines} of {self.task_set.n_parsed} lines are bad"


def check_training_file(path: Path, folder: Path, name: str, limits: ReadLimits) -> Checked:
    """Read a training file into a task set under `folder`, and find what is wrong with it.

    Raises what `read_task_set` raises: a file over the bounds, or mostly of bad lines, more than a report lists.
    """
    limits = replace(limits, max_mostly_bad=MAX_FAULTS)
    task_set = read_task_set(path, folder, format="jsonl", layout="messages", name=name, limits=limits)
    return Checked(task_set, [fault for fault, _ in zip(_faults(path, task_set), range(MAX_FAULTS), strict=False)])


def _faults(path: Path, task_set: TaskSet) -> Iterator[dict[str, Any]]:
    """The faults that an endpoint would find; of lines where it finds none, those that the product's reader finds."""
    seen: set[int] = set()
    found = []
    for line, code, example in line_faults(path):
        seen.add(line if code != _ENOUGH else 0)
        message = example if code in ("invalid_jsonl", _ENOUGH) else f"{CHECKS[code]}: {example}".rstrip(": ")
        found.append({"line": line, "code": code, "message": message})
    for reject in task_set.rejects:
        if reject.line not in seen:
            problem = reject.problems[0]
            found.append(
                {"line": reject.line, "code": problem.code, "pointer": problem.pointer, "message": problem.message}
            )
    yield from sorted(found, key=lambda fault: (fault["code"] == _ENOUGH, fault["line"]))
