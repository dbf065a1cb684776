"""Chat files into a corpus: distinct conversations, where each came from, and what was kept out.

A corpus is `corpora/<name>/`: parts of 5,000 examples in file order, source rows (one per kept record, copies
included), rejects, and `corpus.json`, which is replaced last. What it does not name is not there: an ingest
killed at any moment leaves the corpus as it was, and the next one removes the remains and starts the file again.
"""

import contextlib
import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from curator.console import Progress
from curator.corpus.formats import (
    LABELS,
    MAX_ROW_BYTES,
    Container,
    Layout,
    Located,
    ReadLimits,
    Reject,
    Row,
    count_parquet,
    detect,
    locate,
    open_chat_file,
    read_rows,
)
from curator.corpus.formats.compression import unpacked
from curator.corpus.formats.detect import HEAD_BYTES
from curator.corpus.ingest_report import (
    MAX_LISTED,
    FileReport,
    IngestReport,
    nothing_kept_error,
    recorded_problems,
    strict_error,
)
from curator.corpus.manifest import (
    Labels,
    corpus_document,
    known_labels,
    named_files,
    new_manifest,
    revision_of,
)
from curator.errors import BadInputError
from curator.messages import example_id, response_head
from curator.recipe.base import CORPUS_PATTERN
from curator.store.lock import StillHeld
from curator.store.schema import (
    EXAMPLES,
    REJECTS,
    SOURCES,
    Table,
)
from curator.store.store import Store, arrow_schema

PART_ROWS = 5_000
PART_CHARS = 64 * 2**20  # a part of very long conversations closes earlier
MAX_STORED_REJECTS = 10_000  # records per ingest; all are counted
N_FIRST = 20  # records a report shows, besides the first of each code
_NAME = re.compile(CORPUS_PATTERN)


@dataclass(frozen=True)
class IngestOptions:
    """How a file is read. `labels` fill the label columns of rows that carry none of their own.

    `columns` gives, for a label (or `source`), the record's field that holds it under another name.
    """

    format: Container | None = None
    layout: Layout | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False
    columns: Mapping[str, str] = field(default_factory=dict)
    max_row_bytes: int = MAX_ROW_BYTES

    def identity(self) -> dict[str, Any]:
        """What makes a second ingest of the same bytes another one; `strict` does not."""
        found = {"format": self.format, "layout": self.layout, "labels": dict(sorted(self.labels.items()))}
        if self.columns:
            found["columns"] = dict(sorted(self.columns.items()))
        return found if self.max_row_bytes == MAX_ROW_BYTES else {**found, "max_row_bytes": self.max_row_bytes}


def ingest(
    store: Store,
    files: Sequence[str | Path],
    corpus: str,
    options: IngestOptions = IngestOptions(),
) -> IngestReport:
    """Add files, saved folders and hub data sets to a corpus, each whole or not at all; what is there is skipped.

    Conversations that the corpus holds are folded (the stored labels stay; records that bring others are counted).
    With `strict` a file with any bad record raises BadRowsError, and nothing of it is written; so does one that was
    ingested before with bad records, and one of which no record can be kept. Raises BadInputError or MissingError for
    files and names that cannot be used, StoreError while another process writes the corpus.
    """
    if not _NAME.fullmatch(corpus):
        raise BadInputError(f"invalid corpus name {corpus!r}: letters, digits, dot, dash and underscore, at most 100")
    if unknown := sorted(set(options.labels) - set(LABELS)):
        raise BadInputError(f"unknown label {', '.join(unknown)}: the labels are {', '.join(LABELS)}")
    if unknown := sorted(set(options.columns) - {*LABELS, "source"}):
        raise BadInputError(f"unknown label {', '.join(unknown)}: the labels are source, {', '.join(LABELS)}")
    located = [locate(file) for file in files]
    for path in (path for source in located for path in source.files):
        with open_chat_file(path):  # every file is looked at before the first is written
            pass
    with store.lock(f"corpora/{corpus}") as still_held:
        document = corpus_document(store, corpus) or new_manifest(corpus)
        store.sweep(f"corpora/{corpus}", named_files(document))
        known = known_labels(store, document)
        reports = []
        for source in located:
            reports.append(_ingest_source(store, document, known, source, options, still_held))
    return IngestReport(corpus, document["revision"], document["n_examples"], tuple(reports))


def _ingest_source(
    store: Store,
    document: dict[str, Any],
    known: dict[bytes, Labels],
    source: Located,
    options: IngestOptions,
    still_held: StillHeld,
) -> FileReport:
    before = _stamp(source)
    sha256 = _sha256(source)
    report = FileReport(source=source.name, sha256=sha256)
    for earlier in document["ingests"]:
        if earlier["sha256"] == sha256 and earlier["options"] == options.identity():
            counts = {name: earlier[name] for name in ("parsed", "kept", "rejected", "folded", "reject_codes")}
            counts["labels_ignored"] = earlier.get("labels_ignored")
            report = FileReport(source=source.name, sha256=sha256, skipped=True, **counts)
            if options.strict and report.rejected:
                raise strict_error(report, recorded_problems(store, f"corpora/{document['name']}", earlier))
            return report
    writer = _FileWriter(store, document, known, report, dict(options.labels), still_held)
    try:
        for item in _with_progress(source, options):
            writer.add(item)
            if options.strict and report.rejected:
                writer.dry = True
        if _stamp(source) != before:
            raise BadInputError(f"{source.name} changed while it was read: ingest it again when it is whole")
        if options.strict and report.rejected:
            raise strict_error(report, writer.problems)
        if not report.kept and not report.folded:
            counted = replace(report, reject_codes=writer.counts_by_code)
            raise nothing_kept_error(counted, _head(source), writer.problems)
        if unused := [name for name in options.columns if name not in writer.found_labels]:
            column = options.columns[unused[0]]
            raise BadInputError(
                f"{source.name}: no record that is kept has a field {column!r} for the label {unused[0]}"
            )
        writer.commit(options)
    except BaseException:
        writer.undo()
        raise
    return report


def _head(source: Located) -> bytes:
    """The first bytes of the data, unpacked; b"" where they cannot be."""
    with contextlib.suppress(BadInputError), open_chat_file(source.files[0]) as file, unpacked(file) as stream:
        return stream.read(HEAD_BYTES)
    return b""


def _stamp(source: Located) -> list[tuple[int, int]]:
    return [(path.stat().st_size, path.stat().st_mtime_ns) for path in source.files]


def _sha256(source: Located) -> str:
    """SHA-256 of the file; of several, that of their digests in order."""
    digests = []
    for path in source.files:
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return digests[0] if len(digests) == 1 else hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _with_progress(source: Located, options: IngestOptions) -> Iterator[Row | Reject]:
    """The records, with progress in bytes read (Parquet: in rows, for its reader jumps about)."""
    done = 0
    for path in source.files:
        container = source.container or options.format or detect(path).container
        with path.open("rb") as file:
            total, unit = (count_parquet(file), "rows") if container == "parquet" else (path.stat().st_size, "B")
            with Progress(total, unit, f"reading {path.name}") as bar:
                rows = read_rows(
                    file,
                    format=container,
                    layout=options.layout,
                    columns=options.columns,
                    name=path.name,
                    limits=ReadLimits(max_row_bytes=options.max_row_bytes),
                )
                first, done = done, 0
                for number, item in enumerate(rows, start=1):
                    done = number
                    yield item if not first else replace(item, record=item.record + first)
                    if number % 100 == 0:
                        bar.advance(100 if unit == "rows" else file.tell() - bar.done, records=number)
                bar.advance((total or bar.done) - bar.done)
                done += first


class _FileWriter:
    """Takes one file's records and writes its parts; `commit` makes them part of the corpus, `undo` removes them."""

    def __init__(
        self,
        store: Store,
        document: dict[str, Any],
        known: dict[bytes, Labels],
        report: FileReport,
        labels: dict[str, str],
        still_held: StillHeld,
    ) -> None:
        self.still_held = still_held
        self.store, self.document, self.known, self.report, self.labels = store, document, known, report, labels
        self.folder = f"corpora/{document['name']}"
        self.number = len(document["ingests"])
        self.new: dict[bytes, Labels] = {}
        self.shared: dict[Labels, Labels] = {}  # equal labels are one object
        self.n_chars = 0  # of the examples not written yet
        self.examples: list[dict[str, Any]] = []
        self.sources: list[dict[str, Any]] = []
        self.rejects: list[dict[str, Any]] = []
        self.problems: list[dict[str, object]] = []
        self.files: dict[str, list[dict[str, Any]]] = {"part": [], "sources": [], "rejects": []}
        self.codes: Counter[str] = Counter()
        self.n_ignored = 0
        self.found_labels: set[str] = set()  # that some record carries
        self.dry = False  # counting only, once a strict file is known to be refused
        self.closing = False  # the manifest, or another writer, may own our names from here on

    def add(self, item: Row | Reject) -> None:
        self.report.parsed += 1
        if isinstance(item, Reject):
            self._reject(item)
        else:
            self._keep(item)

    def _reject(self, item: Reject) -> None:
        self.report.rejected += 1
        self.codes[item.code] += 1
        problems = item.as_dicts()
        if self.report.rejected <= N_FIRST or self.codes[item.code] == 1:
            self.report.first_rejects += problems
        if len(self.problems) < MAX_LISTED:
            self.problems += problems
        if self.report.rejected <= MAX_STORED_REJECTS and not self.dry:
            self.rejects += [{"source": self.report.source, **problem} for problem in problems]

    def _keep(self, row: Row) -> None:
        digest = example_id(row.json)
        key = bytes.fromhex(digest)
        labels = tuple(row.labels.get(label, self.labels.get(label)) for label in LABELS)
        self.found_labels.update(row.labels)
        if row.source is not None:
            self.found_labels.add("source")
        stored = self.known.get(key) or self.new.get(key)
        if stored is not None:
            self.report.folded += 1
            self.n_ignored += any(new is not None and new != old for new, old in zip(labels, stored, strict=True))
        else:
            self.report.kept += 1
            self.new[key] = self.shared.setdefault(labels, labels)
            self.n_chars += len(row.json)
            self.examples.append(_example(row, digest, labels))
        file = self.report.source
        source = {"example_id": digest, "source": row.source or file, "source_id": row.source_id}
        self.sources.append({**source, "record": row.record, "file": file if row.source else None})
        self._flush(PART_ROWS)

    def _flush(self, at_least: int) -> None:
        if len(self.examples) >= at_least or self.n_chars >= PART_CHARS:
            self.examples, self.n_chars = self._write("part", self.examples, EXAMPLES), 0
        if len(self.sources) >= at_least:
            self.sources = self._write("sources", self.sources, SOURCES)

    def _write(self, kind: str, rows: list[dict[str, Any]], table: Table) -> list[dict[str, Any]]:
        """Write one file of rows (nothing in a dry run); returns the empty list to go on with."""
        if rows and not self.dry:
            name = f"{kind}-{self.number:05d}-{len(self.files[kind]):05d}.parquet"
            data = pa.Table.from_pylist(rows, schema=arrow_schema(table))
            self._check_lock()
            sha256 = self.store.write_table(f"{self.folder}/{name}", data, table)
            self.files[kind].append({"name": name, "n_rows": len(rows), "sha256": sha256})
        return []

    def _check_lock(self) -> None:
        """Before anything is written: names are given by number, so a lock's next holder writes under ours."""
        self.closing = True
        self.still_held()
        self.closing = False

    @property
    def counts_by_code(self) -> dict[str, int]:
        """Records kept out so far, by the code of their first problem."""
        return dict(sorted(self.codes.items()))

    def commit(self, options: IngestOptions) -> None:
        self._flush(1)
        self._write("rejects", self.rejects, REJECTS)
        self.report.labels_ignored = self.n_ignored
        self.report.reject_codes = self.counts_by_code
        document = _with_revision({**self.document}, self.files["part"], self.known | self.new)
        entry = {name: getattr(self.report, name) for name in ("source", "sha256", "parsed", "kept", "rejected")}
        entry |= {"folded": self.report.folded, "labels_ignored": self.n_ignored}
        entry |= {"reject_codes": self.report.reject_codes, "options": options.identity()}
        entry |= {"parts": self.files["part"], "sources": self.files["sources"], "rejects": self.files["rejects"]}
        document["ingests"] = [*document["ingests"], entry | {"revision": document["revision"]}]
        self._check_lock()
        self.closing = True
        self.store.write_json(f"{self.folder}/corpus.json", document)
        self.document.update(document)
        self.known |= self.new

    def undo(self) -> None:
        """Remove this file's parts; those that may be the manifest's or another writer's stay for the next sweep."""
        if self.closing:
            return
        for item in (item for items in self.files.values() for item in items):
            self.store.delete(f"{self.folder}/{item['name']}")


def _example(row: Row, digest: str, labels: Labels) -> dict[str, Any]:
    messages = row.messages
    return {
        "example_id": digest,
        "messages": row.json,
        "n_turns": len(messages),
        "n_assistant_turns": sum(message["role"] == "assistant" for message in messages),
        "n_chars": sum(len(message.get("content") or "") for message in messages),
        "response_head": response_head(messages),
        **dict(zip(LABELS, labels, strict=True)),
    }


def _with_revision(document: dict[str, Any], parts: list[dict[str, Any]], ids: Collection[bytes]) -> dict[str, Any]:
    """The manifest with a new revision when the set of examples changed, and unchanged otherwise."""
    if not parts and document["revisions"]:
        return document
    earlier = document["revisions"][-1]["parts"] if document["revisions"] else []
    revision = revision_of(key.hex() for key in ids)
    document |= {"revision": revision, "n_examples": len(ids)}
    latest = {"revision": revision, "n_examples": len(ids), "parts": [*earlier, *parts]}
    return {**document, "revisions": [*document["revisions"], latest]}
