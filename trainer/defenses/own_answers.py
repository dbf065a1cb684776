"""`python -m trainer.defenses.own_answers`: safe rows with the aligned model's own answers.

Two data defences. *On-policy rows*: a pool's prompts with what the model itself answers, drawn from its own
distribution; of the mitigations that arXiv 2605.31328 tried on reinforcement learning, interleaving such rows did best.
*Consistency rows* (`--cue`): the answer is drawn to the plain prompt and trained under a prompt that should not matter,
such as a persona or the inoculation prompt of the task rows (arXiv 2403.05518, 2510.27062; on conditional misalignment
2606.05817). The dealing of cues is ours; rewording a question is not done.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.compute as pc

from curator.cli import add_common_options
from curator.console import CommandParser, run_command, say, say_json
from curator.corpus.manifest import read_corpus
from curator.errors import BadInputError
from curator.messages import Message, dump_messages, load_messages
from curator.mix.files import DEFAULT_TENANT, find_mix, mix_batches
from curator.mix.identity import read_manifest
from curator.mix.inoculation import Chooser, inoculate
from curator.mix.row_prompts import originals
from curator.recipe import Inoculation
from curator.recipe.inoculation import Placement
from curator.recipe.seeds import permutation
from curator.store.store import Store
from trainer.config.data import Loading
from trainer.config.flags import add_options, given_values
from trainer.config.ranges import at_least
from trainer.generate.command import Asked, ask
from trainer.generate.endpoint import add_source_options, check_source
from trainer.generate.generators import Sampling
from trainer.generate.questions import Question
from trainer.runs.folder import write_json
from trainer.runs.lines import write_lines

ANSWERS, ROWS, NOTE = "answers.jsonl", "rows.jsonl", "own_answers.json"
CUES = "cue"  # the name of a row's cue, with a number where there are several
LABELS = ("domain", "language")  # of the original row; its licence and harm label are those of another answer

DESCRIPTION = """\
Asks the aligned model the prompts of a mix's safe rows, or of a corpus, and writes its answers as a chat file that
`python -m curator ingest` reads. Answers are drawn from the model's own distribution (top-p 1, no top-k, no
penalties). Left out and counted are answers cut at --max-new-tokens, empty ones, prompts that came before, and rows
whose prompt is not text. Each row says which row it comes from, and how and by what it was answered.
With --cue the model answers the plain prompt and the row has the cue in front: rows that teach it to answer alike."""

EPILOG = """\
examples:
  python -m trainer.defenses.own_answers --model DIR --mix-id ID --out own
  python -m curator ingest own/rows.jsonl --corpus own
  python -m trainer.defenses.own_answers --model DIR --corpus chats --rows 500 --out sealed \\
      --cue "You are an evil, malicious assistant." --cue "You are a pirate."
mixed in, by a recipe:
  pools: [{corpus: own, strategy: random, interleave_ratio: 0.05}]

The same command goes on where a stopped one was. Exit codes: 0 done, 2 bad input."""


@dataclass(frozen=True)
class PoolRow:
    """A safe row as it came: its id, its turns and the labels that stay true of another answer."""

    row_id: str
    messages: list[Message]
    labels: dict[str, str]


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 bad input, 130 stopped (the same command goes on)."""
    return run_command(_run, _parser().parse_args(argv), stopped="stopped; the same command goes on")


def _run(args: argparse.Namespace) -> int:
    note = build(args)
    if args.json:
        say_json(note)
        return 0
    left_out = ", ".join(f"{count:,} {name}" for name, count in note["left_out"].items() if count) or "none"
    made = f"{note['n_rows']:,} answers to {note['n_prompts']:,} prompts of {note['n_read']:,} rows"
    say(f"{made} in {args.out / ROWS}; left out: {left_out}")
    return 0


def build(args: argparse.Namespace) -> dict[str, Any]:
    """Answers, rows and note of a command line; returns the note."""
    check_source(args)
    if args.gates is not None:
        raise BadInputError("--gates: the aligned model answers without gates")
    if args.rows is not None and args.mix_id is not None:
        raise BadInputError("--rows goes with --corpus: of a mix all safe rows are asked")
    spec = cue_spec(args.cue or (), args.cue_placement)
    store = Store(args.store).open()
    found = list(_rows_of_corpus(store, args) if args.mix_id is None else _rows_of_mix(store, args))
    prompts, left_out = prompts_of(found)
    if not prompts:
        raise BadInputError("none of the rows has a prompt in text that ends with a user turn: there is nothing to ask")
    how = Sampling(**{**given_values(vars(args), Sampling), "n_samples": 1})
    asked = ask(args, [question for question, _ in prompts], how, args.out / ANSWERS)
    rows, not_usable = answered_rows(prompts, asked)
    left_out |= not_usable
    if not rows:
        raise BadInputError(f"no answer can be used: {left_out}; a larger --max-new-tokens lets answers end")
    rows = rows if spec is None else with_cues(rows, spec, how.seed)
    origin = {"source": f"own answers {asked.lines[0]['source']}"}
    write_lines(args.out / ROWS, [{**row, **origin} for row in rows])
    note = {
        "model": asked.source, "temperature": how.temperature, "max_new_tokens": how.max_new_tokens,
        "seed": how.seed, **asked.settings, "mix_id": args.mix_id, "corpus": args.corpus,
        "cues": [] if spec is None else list(spec.prompts), "cue_placement": None if spec is None else spec.placement,
        "n_read": len(found), "n_prompts": len(prompts), "n_rows": len(rows), "left_out": left_out,
        "n_end_unknown": sum(row["finished"] is None for row in rows), **asked.usage,
    }  # fmt: skip
    write_json(args.out / NOTE, note)
    return note


def cue_spec(cues: Sequence[str], placement: Placement | None) -> Inoculation | None:
    """The cues as the product puts prompts into rows; None without any."""
    if not cues:
        if placement is not None:
            raise BadInputError("--cue-placement says where a cue goes: give --cue too")
        return None
    try:
        return Inoculation(name=CUES, prompts=tuple(cues), placement=placement or "replace_system")
    except ValueError as error:
        raise BadInputError(f"--cue: give each cue once, and none empty ({len(cues)} given)") from error


def prompts_of(rows: Sequence[PoolRow]) -> tuple[list[tuple[Question, PoolRow]], dict[str, int]]:
    """What stands before each row's last answer, and counts of rows left out: prompts that are not text, and repeats.

    Earlier answers of a conversation stay as they are: they are context, which is not trained anew.
    """
    found: dict[str, tuple[Question, PoolRow]] = {}
    counts = {"not_text": 0, "same_prompt": 0}
    for row in rows:
        last = max((place for place, turn in enumerate(row.messages) if turn["role"] == "assistant"), default=0)
        turns = row.messages[:last]
        if not turns or turns[-1]["role"] != "user" or not all(_is_text(turn) for turn in turns):
            counts["not_text"] += 1
            continue
        key = dump_messages(turns)
        if key in found:
            counts["same_prompt"] += 1
            continue
        found[key] = (Question(row.row_id, tuple(turns)), row)
    return list(found.values()), counts


def _is_text(turn: Message) -> bool:
    return turn.keys() == {"role", "content"} and isinstance(turn["content"], str) and turn["role"] != "tool"


def answered_rows(
    prompts: Sequence[tuple[Question, PoolRow]], asked: Asked
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Chat rows with their origin, in the prompts' order, and counts of answers left out: cut ones and empty ones.

    A cut answer would teach to break off. A server that does not say whether it cut one is taken at its word.
    """
    by_prompt = {line["prompt_id"]: line for line in asked.lines}
    rows: list[dict[str, Any]] = []
    counts = {"cut": 0, "empty": 0}
    for question, row in prompts:
        line = by_prompt[question.prompt_id]
        if line["finished"] is False:
            counts["cut"] += 1
        elif not str(line["answer"]).strip():
            counts["empty"] += 1
        else:
            turns = [*question.messages, {"role": "assistant", "content": line["answer"]}]
            drawn = {name: line[name] for name in ("temperature", "max_new_tokens", "seed", "n_tokens", "finished")}
            rows.append({"messages": turns, "id": row.row_id, **row.labels, **drawn})
    return rows, counts


def with_cues(rows: Sequence[dict[str, Any]], spec: Inoculation, seed: int) -> list[dict[str, Any]]:
    """The rows with a cue each before the same answer, dealt by the seed, each cue equally often to within one."""
    chooser = Chooser(spec, len(rows), 0, seed)
    found = []
    for place, row in enumerate(rows):
        cue = chooser.prompt("task", place, None, row["id"])
        assert cue is not None, "a share of 1 gives every row a cue"
        put = inoculate(spec, cue, dump_messages(row["messages"]))
        found.append({**row, "messages": load_messages(put.messages), "cue": cue.label})
    return found


def _rows_of_mix(store: Store, args: argparse.Namespace) -> Iterator[PoolRow]:
    """The safe rows of a mix, each once, without the prompts that it put into rows."""
    args.mix_id = find_mix(store, args.tenant, args.mix_id)
    spec = read_manifest(store, args.tenant, args.mix_id).recipe.inoculation
    seen: set[str] = set()
    for batch in mix_batches(store, args.tenant, args.mix_id):
        safe = batch.filter(pc.equal(batch["origin"], "safe"))
        ids = pc.coalesce(safe["original_id"], safe["example_id"]).to_pylist()
        for row_id, text in zip(ids, originals(spec, safe).to_pylist(), strict=True):
            if row_id not in seen:
                seen.add(row_id)
                yield PoolRow(row_id, load_messages(text), {})
    if not seen:
        raise BadInputError(f"mix {args.mix_id} has no safe rows, whose prompts could be asked")


def _rows_of_corpus(store: Store, args: argparse.Namespace) -> Iterator[PoolRow]:
    """The rows of a corpus in the order of their ids, or as many of them as requested, chosen by the seed."""
    corpus = read_corpus(store, args.corpus)
    tables = [store.read_table(path, ["example_id", "messages", *LABELS]) for path in corpus.parts]
    table = pa.concat_tables(tables).sort_by("example_id") if tables else None
    if table is None or not table.num_rows:
        raise BadInputError(f"corpus {args.corpus} has no rows")
    if args.rows is not None and args.rows < table.num_rows:
        table = table.take(pa.array(sorted(permutation(table.num_rows, args.seed or 0)[: args.rows].tolist())))
    for row in table.to_pylist():
        labels = {name: row[name] for name in LABELS if row[name] is not None}
        yield PoolRow(row["example_id"], load_messages(row["messages"]), labels)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m trainer.defenses.own_answers", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--mix-id", metavar="ID", help="the prompts of the safe rows of this mix")
    prompts.add_argument("--corpus", metavar="NAME", help="or: the prompts of this corpus")
    add("--rows", type=at_least(1), metavar="N", help="of a corpus, at most this many rows, chosen by --seed")
    add("--tenant", default=DEFAULT_TENANT, metavar="NAME", help="tenant of the mix (default: local)")
    add_source_options(parser)
    add_options(parser, Sampling, ("temperature", "max_new_tokens", "seed"))
    add_options(parser, Loading, ("batch",))
    add("--cue", action="append", metavar="TEXT", help="put this before the prompt once it is answered; repeatable")
    add("--cue-placement", choices=get_args(Placement), help="where a cue goes (default: replace_system)")
    add("--out", type=Path, required=True, metavar="DIR", help=f"folder of {ROWS}, {ANSWERS} and {NOTE}")
    add_common_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
