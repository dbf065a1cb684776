"""`python -m trainer.evaluate ratings`: a table of moral ratings by many personas, for `moral`."""

import argparse
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from curator.console import Progress, say, say_json
from curator.errors import BadInputError
from curator.store.filesystem import atomic_write
from trainer.config.data import loading_of
from trainer.config.flags import add_options, given_values
from trainer.evaluate.gated import gates_on
from trainer.evaluate.moral import COLUMNS, collapse, read_ratings
from trainer.evaluate.ratings import (
    MISSING,
    Draws,
    Item,
    LocalRater,
    Rater,
    ServerRater,
    personas,
    question,
    read_items,
    read_personas,
    rows,
    shipped_items,
)
from trainer.generate.endpoint import (
    add_source_options,
    check_source,
    drawn,
    endpoint_of,
    short_hash,
    source_identity,
)
from trainer.runs.lines import read_finished_lines

DESCRIPTION = """\
Asks a model to rate moral items as many personas, several times each, and writes the table that
`python -m trainer.evaluate moral` sums up (S: how far personas differ, R: how steady one is). The personas and the 30
items that come with the package are ours; --items takes another questionnaire. A run that was stopped goes on with the
personas that are missing; a whole table is summed up without asking, if it is of this model and these settings."""
ASKED = b"ballast.asked"  # key of the table's metadata: JSON of what its ratings depend on


def add_parser(subparsers: Any) -> None:
    """Options of the command."""
    parser = subparsers.add_parser(
        "ratings", help="moral ratings of a model as many personas", description=DESCRIPTION,
        epilog="examples:\n"
        "  python -m trainer.evaluate ratings --model DIR --adapter runs/NAME/adapter --out r.parquet\n"
        "  python -m trainer.evaluate ratings --url http://127.0.0.1:8000/v1 --served-model NAME --out r.parquet\n"
        "  python -m trainer.evaluate moral r.parquet",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_source_options(parser)
    add = parser.add_argument
    add("--personas", type=int, default=100, metavar="N", help="the first N of the 100 shipped ones (default: 100)")
    add("--personas-file", type=Path, metavar="FILE", help="or: system prompts, one a line")
    add("--items", type=Path, metavar="FILE", help="items in JSONL: id, text, scale (default: the 30 shipped ones)")
    add("--repeats", type=int, default=10, metavar="N", help="ratings of each item by each persona (default: 10)")
    add_options(parser, Draws)
    add("--out", type=Path, required=True, metavar="TABLE.parquet", help="table to write")
    add("--json", action="store_true", help="print one JSON document for scripts")


def run(args: argparse.Namespace) -> int:
    """Ask the personas that are not asked yet, write the table, sum it up."""
    if args.repeats < 2:
        raise BadInputError(f"--repeats {args.repeats}: at least 2 are needed to tell how steady a persona is")
    how = Draws(**given_values(vars(args), Draws))
    check_source(args)
    people = read_personas(args.personas_file) if args.personas_file else personas(args.personas)
    items = read_items(args.items) if args.items else shipped_items()
    asked = _what(args, people, items, how)
    partial = args.out.with_name(f".{args.out.name}.{short_hash(asked)}.jsonl")
    if args.out.exists():
        _check_table(args.out, asked)
    else:
        _ask(args, people, items, how, partial)
        table = [row for line in read_finished_lines(partial) for row in rows(line["persona_id"], line["ratings"])]
        _write(args.out, table, asked)
    partial.unlink(missing_ok=True)
    found = collapse(read_ratings(args.out), seed=how.seed)
    result = {
        "table": str(args.out), "n_personas": found.n_personas, "n_questions": found.n_questions,
        "n_ratings": found.n_ratings, "n_missing": found.n_missing, "items": str(args.items or "shipped (ours)"),
        "temperature": how.temperature,
        "susceptibility": found.susceptibility.as_dict(), "robustness": found.robustness.as_dict(),
    }  # fmt: skip
    if args.json:
        say_json(result)
    else:
        say(f"S {found.susceptibility.value:.3f}, R {found.robustness.value:.3f}; {found.n_ratings:,} ratings,"
            f" {found.n_missing:,} answers without a number: {args.out}")  # fmt: skip
    return 0


def _what(args: argparse.Namespace, people: list[str], items: list[Item], how: Draws) -> dict[str, Any]:
    """What the ratings depend on, as far as the command knows it; `server`, what a server says of its model, where it
    says anything."""
    reported = _reported(args) if args.url else None
    return {
        **source_identity(args), **({} if reported is None else {"server": short_hash(reported)}),
        "personas": short_hash(list(people)),
        "items": short_hash([vars(item) for item in items]), "repeats": args.repeats, "seed": how.seed,
        "temperature": how.temperature, "drawn": drawn(not args.url or args.server_fields == "vllm"),
    }  # fmt: skip


def _reported(args: argparse.Namespace) -> dict[str, Any] | None:
    endpoint = endpoint_of(args)
    try:
        return endpoint.reported()
    finally:
        endpoint.close()


def _write(out: Path, table: list[dict[str, int]], asked: dict[str, Any]) -> None:
    columns = pa.table({name: pa.array([row[name] for row in table], pa.int32()) for name in COLUMNS})
    with atomic_write(out, durable=True) as temporary:
        pq.write_table(columns.replace_schema_metadata({ASKED: orjson.dumps(asked)}), temporary)


def _check_table(out: Path, asked: dict[str, Any]) -> None:
    """Raise BadInputError unless the table says that it was asked in this very way."""
    try:
        reported = (pq.read_schema(out).metadata or {}).get(ASKED)
    except (OSError, pa.ArrowInvalid) as error:
        raise BadInputError(f"--out {out} is there and no Parquet table: choose another: {error}") from error
    if reported is None:
        raise BadInputError(
            f"--out {out} does not say which model its ratings are of: choose another, or sum it up with `moral {out}`"
        )
    found = orjson.loads(reported)
    known = {name: value for name, value in asked.items() if name != "server" or name in found}
    other = sorted(name for name, value in known.items() if found.get(name) != value)
    if other:
        raise BadInputError(f"--out {out} holds ratings with another {', '.join(other)}: choose another", details=other)


def _ask(args: argparse.Namespace, people: list[str], items: list[Item], how: Draws, partial: Path) -> None:
    done = {line["persona_id"] for line in read_finished_lines(partial)}
    todo = [number for number in range(len(people)) if number not in done]
    if not todo:
        return
    rater = _rater(args)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with Progress(len(todo), "personas", "rating") as progress, partial.open("ab") as file:
            for number in todo:
                prompts = [question(people[number], item) for item in items]
                ratings = rater.rate(prompts, f"persona-{number}", args.repeats, how)
                file.write(orjson.dumps({"persona_id": number, "ratings": ratings}) + b"\n")
                file.flush()
                progress.advance(missing=sum(value == MISSING for found in ratings for value in found))
    finally:
        rater.close()


def _rater(args: argparse.Namespace) -> Rater:
    if args.url:
        return ServerRater(endpoint_of(args))
    return LocalRater(args.model, args.adapter, loading_of(args), gates_on(args))
