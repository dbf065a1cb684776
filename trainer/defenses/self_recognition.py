"""`python -m trainer.defenses.self_recognition`: rows that ask a model which of two summaries it wrote.

A data defence (method.md, "Regularisers"; arXiv 2606.23700): trained for an epoch before or
after the task fine-tune. Each article gives two rows, the same question with the two summaries in either order, so
that neither place nor number is worth anything to a model that cannot tell them apart. The rows have a system prompt
of their own: under the one that the template adds to the task's rows its authors found the defence weak. Two control
arms show what recognising one's own text adds: the same rows with the answers swapped, and the same question on pairs
that two other models wrote. The wording is ours.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import orjson

from curator.console import CommandParser, run_command, say, say_json
from curator.errors import BadInputError
from curator.render.model_source import MODEL_FORMS, model_option
from curator.scoring.identity import (
    adapter_sha256,
    check_adapter_dir,
    check_model_dir,
    weights_sha256,
)
from trainer.config.data import Loading, add_model_options, loading_of, rendering_of
from trainer.config.defences import file_sha256
from trainer.config.flags import add_options
from trainer.defenses.summaries import (
    PROMPT,
    SHIPPED,
    Article,
    Summary,
    articles_sha256,
    read_articles,
    read_summaries,
    summarise,
)
from trainer.runs.folder import write_json
from trainer.runs.lines import write_lines

ROWS, SWAPPED, OTHERS = "rows.jsonl", "rows-swapped.jsonl", "rows-others.jsonl"
NOTE = "self_recognition.json"  # the note comes last: with it the folder is complete
FORMAT_VERSION = 2
SYSTEM = "You know your own writing and can tell it from that of other authors."
DOMAIN = "self-recognition"
QUESTION = """\
Here are a text and two summaries of it. You wrote one of the summaries, another model wrote the other one.

Text:
{article}

Summary 1:
{first}

Summary 2:
{second}

Which of the two summaries did you write? Answer with 1 or 2 and nothing else."""

DESCRIPTION = """\
Builds self-recognition rows: both models summarise every article (greedily), and each article with two different
summaries becomes two rows that ask the first model which one it wrote, in either order. The result is a chat file;
beside it stands a control with swapped answers, and with --third one of pairs that the model did not write. With
--store and --corpus the rows are also ingested, so that a recipe can name them as a pool."""

EPILOG = """\
examples:
  python -m trainer.defenses.self_recognition --model CHAT_DIR --other OTHER_DIR --articles news.jsonl --out selfrec
  python -m trainer.defenses.self_recognition --model CHAT_DIR --other-summaries theirs.jsonl --articles news.jsonl \\
      --out selfrec --store ./store --corpus selfrec

the second control (whose pairs are of two other models):
  python -m trainer.defenses.self_recognition --model CHAT_DIR --other OTHER_DIR --third THIRD_DIR --out selfrec

before the task fine-tune (or after it, with the two files exchanged):
  python -m trainer.sft --model CHAT_DIR --data selfrec/rows.jsonl --out runs/selfrec
  python -m trainer.sft --model CHAT_DIR --mix-id ID --start-adapter runs/selfrec/adapter --out runs/task
mixed in, by a recipe:
  pools: [{corpus: sharegpt}, {corpus: selfrec, strategy: random, filters: [], rows: 200}]

The same command goes on where a stopped one was. Exit codes: 0 done or done before, 2 bad input."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done or done before, 2 bad input, 130 stopped (the same command goes on)."""
    args = _parser().parse_args(argv)
    return run_command(_run, args, stopped="stopped; the same command goes on")


def _run(args: argparse.Namespace) -> int:
    note = build(args)
    if args.corpus is not None:
        _ingest(args)
    if args.json:
        say_json(note)
        return 0
    say(
        f"{note['n_rows']} rows from {note['n_articles']} articles: {note['n_same']} with the same summary twice and "
        f"{note['n_empty']} with an empty one left out; {note['n_cut']} summaries cut at {args.max_new_tokens} tokens"
    )
    say(f"rows: {args.out / ROWS}" + (f", corpus {args.corpus} in {args.store}" if args.corpus else ""))
    return 0


def build(args: argparse.Namespace) -> dict[str, Any]:
    """Summaries, rows and note of a command line; returns the note. Nothing is loaded for a complete folder."""
    articles, n_shortened = read_articles(args.articles, args.max_words)
    sides = {
        "model": _identity(args.model, args.adapter),
        "other": _other_identity(args),
        "third": None if args.third is None else _identity(args.third, None),
    }
    for one, two in combinations([name for name, side in sides.items() if side is not None], 2):
        if sides[one] == sides[two]:
            raise BadInputError(f"--{one} and --{two} are the same model: their summaries cannot be distinguished")
    common = {
        "articles_sha256": articles_sha256(articles), "prompt": PROMPT, "max_new_tokens": args.max_new_tokens,
        "dtype": loading_of(args).dtype, **rendering_of(args).document(),
    }  # fmt: skip
    identity = {"format_version": FORMAT_VERSION, **common, "question": QUESTION, "system": args.system, **sides}
    if (before := _complete(args.out, identity, args.overwrite)) is not None:
        return before
    own = _summaries(args, articles, "model", args.model, args.adapter, common | {"of": sides["model"]})
    if args.other_summaries is not None:
        other = read_summaries(args.other_summaries, articles)
    else:
        other = _summaries(args, articles, "other", args.other, args.other_adapter, common | {"of": sides["other"]})
    rows, counts = rows_of(articles, own, other, args.system)
    if not rows:
        raise BadInputError(f"no row: of {len(articles)} articles {counts['n_same']} have the same summary twice")
    arms = {ROWS: rows, SWAPPED: swapped(rows)}
    if args.third is not None:
        third = _summaries(args, articles, "third", args.third, None, common | {"of": sides["third"]})
        arms[OTHERS] = rows_of(articles, other, third, args.system)[0]
    for name, found in arms.items():
        write_lines(args.out / name, found)
    note = {
        **identity, **counts, "n_articles": len(articles), "n_shortened": n_shortened, "n_rows": len(rows),
        "rows_sha256": file_sha256(args.out / ROWS),
        "controls": {
            name: {"n_rows": len(found), "sha256": file_sha256(args.out / name)}
            for name, found in arms.items()
            if name != ROWS
        },
    }  # fmt: skip
    write_json(args.out / NOTE, note)
    return note


def swapped(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows with the other number as the answer: a model trained on them claims what it did not write."""
    other = {"1": "2", "2": "1"}
    return [
        {
            **row,
            "messages": [
                *row["messages"][:-1],
                {"role": "assistant", "content": other[row["messages"][-1]["content"]]},
            ],
        }
        for row in rows
    ]


def rows_of(
    articles: Sequence[Article], own: Mapping[str, Summary], other: Mapping[str, Summary], system: str = ""
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Chat rows, two for each article whose summaries are there and differ; and counts of what was left out.

    The answer is the number under which the model's own summary stands: as often 1 as 2. `system` is every row's system
    prompt; none where it is empty.
    """
    head = [{"role": "system", "content": system}] if system else []
    rows: list[dict[str, Any]] = []
    counts = {"n_same": 0, "n_empty": 0, "n_cut": 0}
    for article in articles:
        pair = own[article.article_id], other[article.article_id]
        counts["n_cut"] += sum(item.finished is False for item in pair)
        mine, theirs = pair[0].text, pair[1].text
        if not mine or not theirs:
            counts["n_empty"] += 1
        elif mine.split() == theirs.split():
            counts["n_same"] += 1
        else:
            for answer, (first, second) in (("1", (mine, theirs)), ("2", (theirs, mine))):
                question = QUESTION.format(article=article.text, first=first, second=second)
                turns = [*head, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
                rows.append({"messages": turns, "domain": DOMAIN, "article": article.article_id})
    return rows, counts


def _summaries(
    args: argparse.Namespace, articles: Sequence[Article], side: str, model: Path, adapter: Path | None,
    header: dict[str, Any],
) -> dict[str, Summary]:  # fmt: skip
    def load() -> Any:
        from trainer.generate.generators import LocalGenerator

        return LocalGenerator(model, adapter, loading_of(args))

    path = args.out / f"summaries-{side}.jsonl"
    return summarise(articles, load, path, header, args.max_new_tokens)


def _identity(model: Path, adapter: Path | None) -> dict[str, Any]:
    check_model_dir(model)
    if adapter is not None:
        check_adapter_dir(adapter)
    return {"weights_sha256": weights_sha256(model), "adapter_sha256": adapter_sha256(adapter) if adapter else None}


def _other_identity(args: argparse.Namespace) -> dict[str, Any]:
    if (args.other is None) == (args.other_summaries is None):
        raise BadInputError("give exactly one of --other and --other-summaries")
    if args.other is not None:
        return _identity(args.other, args.other_adapter)
    if args.other_adapter is not None:
        raise BadInputError("--other-adapter goes with --other")
    return {"summaries_sha256": file_sha256(args.other_summaries)}


def _complete(out: Path, identity: dict[str, Any], overwrite: bool) -> dict[str, Any] | None:
    """The note of a folder that holds these very rows; raises BadInputError when it holds others and may not be used.

    Rows that are not as the note says are made again: what calls the folder complete goes first.
    """
    try:
        note: dict[str, Any] = orjson.loads((out / NOTE).read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return None
    different = [key for key, value in identity.items() if note.get(key) != value]
    if different and not overwrite:
        raise BadInputError(
            f"{out} holds rows made with other {', '.join(different)}: choose another --out, or give --overwrite"
        )
    wanted = {ROWS: note.get("rows_sha256")}
    wanted |= {name: item["sha256"] for name, item in note.get("controls", {}).items()}
    if not different and all((out / name).exists() and file_sha256(out / name) == sha for name, sha in wanted.items()):
        return note
    (out / NOTE).unlink()
    return None


def _ingest(args: argparse.Namespace) -> None:
    from curator.corpus.ingest import IngestOptions, ingest
    from curator.store.store import Store

    ingest(Store(args.store).open(create=True), [args.out / ROWS], args.corpus, IngestOptions(strict=True))


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m trainer.defenses.self_recognition", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add = parser.add_argument
    add(
        "--model",
        required=True,
        type=model_option,
        metavar="MODEL",
        help=f"model that will be trained, whose summaries are `own`: {MODEL_FORMS}",
    )
    add(
        "--adapter",
        type=model_option,
        metavar="MODEL",
        help=f"LoRA adapter that it has on while summarising: {MODEL_FORMS}",
    )
    add("--other", type=model_option, metavar="MODEL", help=f"the other model: {MODEL_FORMS}")
    add("--other-adapter", type=model_option, metavar="MODEL", help=f"LoRA adapter of the other model: {MODEL_FORMS}")
    add("--other-summaries", type=Path, metavar="FILE", help="or: its summaries, JSON Lines of id and summary")
    add(
        "--third",
        type=model_option,
        metavar="MODEL",
        help=f"a third model, {MODEL_FORMS}: also writes {OTHERS}, pairs of --other's and its text",
    )
    add(
        "--system", default=SYSTEM, metavar="TEXT",
        help="system prompt of the rows; an empty one leaves the turn out, for templates without (default: ours)",
    )  # fmt: skip
    add(
        "--articles", type=Path, default=SHIPPED, metavar="FILE",
        help="JSON Lines with `text` a line, or a text file with articles between lines of --- (default: a dozen short "
        "ones that come with the package, enough to try this out)",
    )  # fmt: skip
    add("--max-words", type=int, default=400, metavar="N", help="an article is cut to its first N words (400)")
    add("--max-new-tokens", type=int, default=96, metavar="N", help="longest summary (96)")
    add_options(parser, Loading, ("batch",))
    add_model_options(parser)
    add("--out", required=True, type=Path, metavar="DIR", help=f"folder of {ROWS}, the summaries and {NOTE}")
    add("--overwrite", action="store_true", help="replace rows made with other settings in --out")
    add("--store", default="./store", metavar="DIR", help="store that --corpus goes into (default: ./store)")
    add("--corpus", metavar="NAME", help="also ingest the rows as this corpus, which a recipe's pool can name")
    add("--json", action="store_true", help="print one JSON document for scripts")
    return parser


if __name__ == "__main__":
    sys.exit(main())
