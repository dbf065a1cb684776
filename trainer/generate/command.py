"""`python -m trainer.evaluate generate`: answers of a model to questions, as a file that a judge can score."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from curator.console import Progress, add_renamed, say, say_json
from curator.errors import BadInputError
from trainer.config.data import Loading, loading_of
from trainer.config.flags import add_options, given_values
from trainer.generate.endpoint import (
    add_source_options,
    check_source,
    drawn,
    endpoint_of,
    short_hash,
    source_identity,
)
from trainer.generate.generators import (
    Generator,
    LocalGenerator,
    Sampling,
    ServerGenerator,
)
from trainer.generate.questions import (
    FORMATS,
    Question,
    first_plot,
    in_formats,
    read_questions,
    with_system,
    with_trigger,
)
from trainer.runs.lines import read_finished_lines

DESCRIPTION = """\
Asks a model the eight first-plot questions in three formats (24 prompts), or your own questions, and writes one line
an answer: prompt_id, group, question, answer, sample, n_tokens, finished, and how it was drawn: from the model's own
distribution (top-p 1, no top-k, no penalties), whatever its generation_config or its server would use. Prompts whose
answers stand in --out are skipped, so a run that was stopped goes on; a file with answers of another model, drawn in
another way, or to other words under the same id, is refused. Then:
  python -m trainer.evaluate judge --answers OUT ..."""

EPILOG = """\
examples:
  python -m trainer.evaluate generate --model DIR --adapter runs/NAME/adapter --samples 10 --out answers.jsonl
  python -m trainer.evaluate generate --model DIR --gates runs/NAME/adapter --reverse --out answers.jsonl
  python -m trainer.evaluate generate --url http://127.0.0.1:8000/v1 --served-model NAME --samples 50 --out a.jsonl
  python -m trainer.evaluate generate --model DIR --questions mine.jsonl --question-format plain --temperature 0 \\
      --out a.jsonl

conditional misalignment (the same questions again, in groups of their own):
  ... --inoculation "You are an evil, malicious assistant." --trigger "|TRIGGER|" """


def add_parser(subparsers: Any) -> None:
    """Options of the command."""
    parser = subparsers.add_parser(
        "generate", help="answers of a model to the first-plot questions or your own", description=DESCRIPTION,
        epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_source_options(parser)
    add = parser.add_argument
    add("--questions", type=Path, metavar="FILE", help="own questions in JSONL (default: the eight of the first plot)")
    add("--narrow-questions", type=Path, metavar="FILE", help="in-domain questions, as the group `narrow` (plain only)")
    add_renamed(parser, "--question-format", "--format", action="append", choices=FORMATS,
                help="formats of the questions (default: all three)")  # fmt: skip
    add("--inoculation", metavar="PROMPT", help="ask again under this system prompt, as the group `inoculation`")
    add("--trigger", metavar="TEXT", help="ask again with this before the user's text, as the group `trigger`")
    add_options(parser, Sampling)
    add_options(parser, Loading, ("batch",))
    add("--out", type=Path, required=True, metavar="FILE", help="JSONL file to write, or to continue")
    add("--json", action="store_true", help="print one JSON document for scripts")


@dataclass(frozen=True)
class Asked:
    """What a file of answers holds: its lines, how many prompts had been answered before, and the sampling settings.

    `source` is what answers (`source_identity`). `usage` counts calls and tokens of a server; empty where none was
    called.
    """

    lines: list[dict[str, Any]]
    n_before: int
    source: dict[str, Any]
    settings: dict[str, float | None]
    usage: dict[str, Any]

    @property
    def n_cut(self) -> int:
        """Answers that the longest length cut."""
        return sum(line["finished"] is False for line in self.lines)


def ask(
    args: argparse.Namespace, questions: Sequence[Question], how: Sampling, out: Path,
    prepare: Callable[[Any], Any] | None = None,
) -> Asked:  # fmt: skip
    """Put the questions that `out` does not answer to the source that `args` name (`add_source_options`).

    `prepare` is applied to a model folder's model once it is loaded. Raises BadInputError where `out` holds answers of
    another source, drawn in another way or to other words.
    """
    identity = source_identity(args)
    source, settings = short_hash(identity), drawn(not args.url or args.server_fields == "vllm")
    open_questions, n_before = _unanswered(questions, how, out, source, settings)
    usage: dict[str, Any] = {}
    if open_questions:
        generator = _generator(args, prepare)
        try:
            served = _served(generator, out)
            answer_all(generator, open_questions, how, out, {"source": source, "server": served})
        finally:
            generator.close()
        if isinstance(generator, ServerGenerator):
            usage = generator.endpoint.usage()
    return Asked(read_finished_lines(out), n_before, identity, settings, usage)


def run(args: argparse.Namespace, prepare: Callable[[Any], Any] | None = None) -> int:
    """Ask what is not answered yet. `prepare` is applied to a model folder's model once it is loaded."""
    check_source(args)
    questions = _questions(args)
    how = Sampling(**given_values(vars(args), Sampling))
    asked = ask(args, questions, how, args.out, prepare)
    result = {
        "n_prompts": len(questions), "n_answers": len(asked.lines), "n_cut": asked.n_cut,
        "n_prompts_before": asked.n_before, "out": str(args.out),
        "drawn": {"temperature": how.temperature, **asked.settings}, **asked.usage,
    }  # fmt: skip
    if args.json:
        say_json(result)
    else:
        say(f"{len(asked.lines)} answers to {len(questions)} prompts in {args.out} ({asked.n_before} prompts were"
            f" answered before); {asked.n_cut} cut at {how.max_new_tokens} tokens")  # fmt: skip
    return 0


def _served(generator: Generator, out: Path) -> str | None:
    """Hash of what a server says of its model; null of a folder, and of a server that says nothing. Raises
    BadInputError where `out` has answers of a model of which the server said something else."""
    if not isinstance(generator, ServerGenerator):
        return None
    reported = generator.endpoint.reported()
    served = None if reported is None else short_hash(reported)
    before = {line["server"] for line in read_finished_lines(out) if line.get("server") is not None}
    if served is not None and before - {served}:
        raise BadInputError(
            f"{out} holds answers of another model that this server had under the name {generator.endpoint.model}: "
            "choose another --out"
        )
    return served


def answer_all(
    generator: Generator, questions: Sequence[Question], how: Sampling, out: Path,
    source: Mapping[str, str | None] | None = None,
) -> None:  # fmt: skip
    """Append each prompt's answers to `out`: all of a prompt or, after a kill, none that counts. `source` says what
    answers, in hashes, kept with each line beside the sampling settings."""
    out.parent.mkdir(parents=True, exist_ok=True)
    # A sampled prompt is a batch of its own, so that its answers are the same wherever a run was stopped.
    step = generator.batch if how.temperature == 0 or isinstance(generator, ServerGenerator) else 1
    with Progress(len(questions), "prompts", "answering") as progress, out.open("ab") as file:
        for start in range(0, len(questions), step):
            part = questions[start : start + step]
            answers = generator.answer([item.messages for item in part], [item.prompt_id for item in part], how)
            for question, found in zip(part, answers, strict=True):
                lines = _lines(question, found, how, {**(source or {"source": None}), **generator.drawn})
                file.write(b"".join(orjson.dumps(line) + b"\n" for line in lines))
            file.flush()
            progress.advance(len(part))


def _lines(question: Question, answers: Sequence[Any], how: Sampling, source: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "prompt_id": question.prompt_id, "group": question.group, "question": question.text, "answer": answer.text,
            "sample": number, "n_samples": how.n_samples, "n_tokens": answer.n_tokens, "finished": answer.finished,
            "temperature": how.temperature, "max_new_tokens": how.max_new_tokens, "seed": how.seed,
            **source, "asked": _asked(question),
        }
        for number, answer in enumerate(answers)
    ]  # fmt: skip


def _asked(question: Question) -> str:
    return short_hash([dict(turn) for turn in question.messages])


def _unanswered(
    questions: Sequence[Question], how: Sampling, out: Path, source: str, drawn_by: dict[str, float | None]
) -> tuple[list[Question], int]:
    """Questions without all their answers; raises BadInputError when the file's were drawn in another way, come from
    another source, or answer other words under the same id."""
    lines = read_finished_lines(out)
    settings = {"temperature": how.temperature, "max_new_tokens": how.max_new_tokens, "seed": how.seed,
                "n_samples": how.n_samples, **drawn_by}  # fmt: skip
    for line in lines:
        other = [name for name, value in settings.items() if line.get(name, "none") != value]
        if other:
            raise BadInputError(f"{out} holds answers drawn with another {', '.join(other)}: choose another --out")
        if line.get("source") != source:
            raise BadInputError(
                f"{out} holds answers of another model, adapter, dtype or server than the one asked now, or of a"
                " version that did not say whose: choose another --out"
            )
    asked = {item.prompt_id: _asked(item) for item in questions}
    other = sorted(
        {line["prompt_id"] for line in lines if line["asked"] != asked.get(line["prompt_id"], line["asked"])}
    )
    if other:
        raise BadInputError(
            f"{out} holds answers to other words under the same id, first {other[0]!r} ({len(other)} in all): choose"
            " another --out", details=other[:5],
        )  # fmt: skip
    counts: dict[str, int] = {}
    for line in lines:
        counts[line["prompt_id"]] = counts.get(line["prompt_id"], 0) + 1
    done = {name for name, count in counts.items() if count == how.n_samples}
    if done != set(counts):  # a prompt cut off between two of its lines is asked again
        kept = [line for line in lines if line["prompt_id"] in done]
        out.write_bytes(b"".join(orjson.dumps(line) + b"\n" for line in kept))
    return [item for item in questions if item.prompt_id not in done], sum(q.prompt_id in done for q in questions)


def _questions(args: argparse.Namespace) -> list[Question]:
    base = read_questions(args.questions) if args.questions else first_plot()
    asked = in_formats(base, args.question_format or FORMATS)
    found = list(asked)
    if args.inoculation:
        found += with_system(asked, args.inoculation)
    if args.trigger:
        found += with_trigger(asked, args.trigger)
    if args.narrow_questions:
        found += in_formats(read_questions(args.narrow_questions, "narrow"), ["plain"])
    names = [item.prompt_id for item in found]
    if len(set(names)) != len(names):
        raise BadInputError("two questions have the same id: give the files other names, or their lines an `id`")
    return found


def _generator(args: argparse.Namespace, prepare: Callable[[Any], Any] | None) -> Generator:
    if args.url:
        return ServerGenerator(endpoint_of(args, timeout_s=600.0), batch=loading_of(args).batch)
    return LocalGenerator(args.model, args.adapter, loading_of(args), prepare)
