"""What an ingest did with each file's records, and why one with `strict` was refused."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from curator.corpus.formats.causes import likely_cause
from curator.errors import BadRowsError
from curator.store.store import Store

MAX_LISTED = 1_000  # problems in an error's details


@dataclass
class FileReport:
    """Counts of one file, in records: parsed = kept + rejected + folded."""

    source: str
    sha256: str
    parsed: int = 0
    kept: int = 0
    rejected: int = 0
    folded: int = 0
    labels_ignored: int | None = (
        0  # folded, with a label other than the stored one; None: an older version's skipped file
    )
    skipped: bool = False  # the same bytes with the same options are in the corpus already
    reject_codes: dict[str, int] = field(default_factory=dict)  # records by their first problem; sums to rejected
    first_rejects: list[dict[str, object]] = field(default_factory=list)  # of 20 records, and of each code's first


@dataclass(frozen=True)
class IngestReport:
    """What one ingest did, and the corpus as it stands now."""

    corpus: str
    revision: str
    n_examples: int
    files: tuple[FileReport, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def strict_error(report: FileReport, problems: Sequence[dict[str, object]]) -> BadRowsError:
    """The refusal of a file with bad records, which `problems` lists; of a skipped one, by what was recorded."""
    written = "nothing of it was written (--strict)"
    if report.skipped:
        written = "was ingested without --strict before: its other records are in the corpus, which stays as it is"
    codes = ", ".join(f"{code} {n:,}" for code, n in report.reject_codes.items())
    first = f"by code: {codes}"
    if problems:
        at = problems[0]
        where = f"line {at['line']}" if at["line"] is not None else f"record {at['record']}"
        first = f"the first is {where}: {at['code']}, {at['message']}"
    return BadRowsError(
        f"{report.source} has {report.rejected} bad records of {report.parsed}, and {written}; {first}",
        details=problems,
    )


def nothing_kept_error(report: FileReport, head: bytes, problems: Sequence[dict[str, object]]) -> BadRowsError:
    """The refusal of a file of which no record can be kept; `head` are its first bytes."""
    cause = likely_cause(head, report.reject_codes)
    stated = f"{report.source}: none of its {report.parsed:,} records can be kept, so nothing was written"
    if not report.parsed:
        return BadRowsError(f"{report.source} holds no records, so nothing was written")
    codes = ", ".join(f"{code} {n:,}" for code, n in report.reject_codes.items())
    at = problems[0]
    where = f"line {at['line']}" if at["line"] is not None else f"record {at['record']}"
    reason = f"; {cause}" if cause else ""
    return BadRowsError(f"{stated}{reason} (by code: {codes}; the first is {where}: {at['message']})", details=problems)


def recorded_problems(store: Store, folder: str, entry: Mapping[str, Any]) -> list[dict[str, object]]:
    """The first problems that an earlier ingest stored, as `Reject.as_dicts` gives them."""
    found: list[dict[str, object]] = []
    for item in entry["rejects"]:
        rows = store.read_table(f"{folder}/{item['name']}").slice(0, MAX_LISTED - len(found)).to_pylist()
        found += [{name: value for name, value in row.items() if name != "source"} for row in rows]
    return found
