"""`python -m curator ingest`: chat files into a corpus."""

import argparse
import sys
from collections.abc import Sequence

from curator.cli import Subparsers, add_reading_options, new_parser, open_store, row_bytes
from curator.console import as_typed, list_problems, say, say_json
from curator.corpus.formats import LABELS
from curator.corpus.ingest import IngestOptions, ingest
from curator.corpus.ingest_report import FileReport
from curator.errors import BadInputError, BadRowsError

N_LISTED = 20  # bad records shown; the rejects table holds up to 10,000 a file

DESCRIPTION = """\
Reads chat data (messages, ShareGPT, Alpaca or prompt/completion, as JSON Lines, a JSON array of any size, CSV, Parquet
or Arrow, each also packed with gzip or Zstandard; folders saved by `datasets`; hub ids) into a corpus of
distinct conversations. A bad record is kept out, listed and counted; a conversation that is there already is
folded into the earlier one, whose labels stay: records that bring other labels are counted as labels ignored. A file
that was read before with the same options is skipped, and one whose reading was interrupted is read again from its
start."""

EXAMPLES = """\
  python -m curator ingest chats.jsonl more.parquet --corpus chats
  python -m curator ingest hf://org/name:train saved_folder/train more.csv.gz --corpus chats
  python -m curator ingest answers.json --corpus chats --layout sharegpt --language en
  python -m curator ingest chats.jsonl --corpus chats --strict   (refuse the file if any record is bad)
  python -m curator sql "select code, count(*) as n from rejects group by code order by code\""""


def add_parser(subparsers: Subparsers) -> None:
    """Declare the command's options."""
    parser = new_parser(subparsers, "ingest", description=DESCRIPTION, examples=EXAMPLES)
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="chat files, saved folders, or hub ids (docs/formats.md)"
    )
    parser.add_argument("--corpus", required=True, metavar="NAME", help="corpus to make or to add to")
    add_reading_options(parser)
    for label in LABELS:
        parser.add_argument(f"--{label}", metavar="TEXT", help=f"{label} label of rows that carry none of their own")
    parser.add_argument(
        "--label-column",
        action="append",
        default=[],
        metavar="LABEL=COLUMN",
        help=f"take a label (source, {', '.join(LABELS)}) from a field of another name; may be repeated",
    )
    parser.add_argument(
        "--strict",
        action="store_true",
        help="refuse a file with any bad record, also one that is there already; write nothing of it",
    )


def run(args: argparse.Namespace) -> int:
    """Ingest and say what became of every record."""
    labels = {label: getattr(args, label) for label in LABELS if getattr(args, label)}
    store = open_store(args, create=True)
    columns = _columns(args.label_column)
    options = IngestOptions(args.format, args.layout, labels, args.strict, columns, row_bytes(args))
    try:
        report = ingest(store, args.files, args.corpus, options)
    except BadRowsError as error:
        if not args.json:
            list_problems([item for item in error.details if isinstance(item, dict)][:N_LISTED])
        raise
    if args.json:
        say_json(report.as_dict())
        return 0
    for file in report.files:
        _say_file(file)
    say(f"corpus {report.corpus}: {report.n_examples:,} examples, revision {report.revision}")
    return 0


def _columns(given: Sequence[str]) -> dict[str, str]:
    columns: dict[str, str] = {}
    for pair in given:
        label, equals, column = pair.partition("=")
        if not (label and equals and column) or label in columns:
            raise BadInputError(f"--label-column {pair}: write LABEL=COLUMN, each label once")
        columns[label] = column
    return columns


def _say_file(file: FileReport) -> None:
    counts = f"{file.parsed:,} parsed = {file.kept:,} kept + {file.rejected:,} rejected + {file.folded:,} folded"
    if file.skipped:
        say(f"{file.source}: ingested before with these options, skipped ({counts})")
        return
    say(f"{file.source}: {counts}")
    if file.labels_ignored:
        say(f"  labels ignored: {file.labels_ignored:,} folded records brought labels other than those stored")
    if file.rejected:
        say("  rejected: " + ", ".join(f"{code} {n:,}" for code, n in file.reject_codes.items()))
        list_problems(file.first_rejects)
        more = file.rejected - len({problem["record"] for problem in file.first_rejects})
        if more:
            sys.stderr.write(
                as_typed(f"  and {more:,} more bad records: see the view rejects (python -m curator sql)\n")
            )
