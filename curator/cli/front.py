"""`ballast`: one console command with every command of the product under a verb.

The verbs of other packages are found through the entry points `ballast.verbs` and `ballast.lab`, so that this package
imports neither `api` nor `trainer`. `python -m curator VERB` and the like are the same code.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from curator.cli import COMMANDS
from curator.console import (
    CONSOLE_COMMAND,
    LAB_GROUP,
    VERBS_GROUP,
    console_started,
    meant,
    product_version,
    report_error,
    say,
)
from curator.errors import BadInputError, BallastError, MissingDependencyError

NAME = CONSOLE_COMMAND
_EXTRAS = {"api": "api", "trainer": "train"}  # what the verbs of a package need beside the core
_OPTIONS = ("--help", "--help-all", "--version")

# Pages of the help, in the order of the work. The text is the one line that stands beside the verb.
FIRST_PAGE = {
    "try": "see the idea on a tiny model: half a minute, no data, no network",
    "provision": "once for a base model: misaligned adapters, scored pool, calibration card, archive",
    "safeguard": "for each data set: mix, train, measure, gate",
    "doctor": COMMANDS["doctor"],
    "ingest": COMMANDS["ingest"],
    "score": COMMANDS["score"],
    "mix": COMMANDS["mix"],
    "sql": COMMANDS["sql"],
    "plot": COMMANDS["plot"],
    "train": "train on a mix in its order, with the regulariser defences",
    "evaluate": "measure what a fine-tune became, with a gate",
    "serve": "answer HTTP calls with safeguarded mixes",
    "status": COMMANDS["status"],
}
SECOND_PAGE = {
    "organisms": "misaligned adapters of a base model and their benign twins",
    "export": COMMANDS["export"],
    "import": COMMANDS["import"],
    "audit": COMMANDS["audit"],
    "persona": "persona vectors: extract, project, shift",
    "monitor": "trait drift while training, with an alarm rule",
    "keys": "API keys of a store",
    "worker": "do the jobs that the service queues",
}
LAB_PAGE = {
    **{verb: COMMANDS[verb] for verb in ("prepare", "snippet", "verify", "diff", "report", "remove")},
    "nll": "mean response loss of a chat file with and without an adapter",
    "safelora": "project a trained adapter onto what alignment changed",
    "self-recognition": "rows that ask a model which of two summaries it wrote",
    "own-answers": "safe rows with the aligned model's own answers, perhaps under irrelevant prompts",
    "calibration": "how far a corpus's gap can be trusted",
    "compare": "every defence on one narrow set, as a resumable grid",
    "toy": "the experiment on the tiny model, with controls and seeds",
    "demo": "the whole way on a real model and a real corpus",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None and Path(sys.argv[0]).suffix != ".py":
        # The script does not import from the folder that it is run in, which may be a stranger's model or data; the
        # processes that it starts would, as `python -m` and `python -c` do.
        os.environ["PYTHONSAFEPATH"] = "1"
    try:
        return _run(words)
    except BallastError as error:
        report_error(error, as_json="--json" in words)
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("stopped\n")
        return 130


def verbs(group: str = VERBS_GROUP) -> dict[str, EntryPoint]:
    """The verbs that packages bring, by name."""
    return {item.name: item for item in entry_points(group=group)}


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        _say_help(everything=False)
        return 0
    if words[0] == "--help-all":
        _say_help(everything=True)
        return 0
    if words[0] == "--version":
        say(f"{NAME} {product_version()}")
        return 0
    if words[0] == "lab":
        return _lab(words[1:])
    if words[0] == "completion":
        return _completion(words[1:])
    return _dispatch(words[0], words[1:], VERBS_GROUP, {**FIRST_PAGE, **SECOND_PAGE}, NAME)


def _lab(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help"):
        say(f"usage: {NAME} lab VERB ...\n\nResearch commands, and those for one corner of the work:")
        _say_page(LAB_PAGE)
        return 0
    return _dispatch(words[0], words[1:], LAB_GROUP, LAB_PAGE, f"{NAME} lab")


def _completion(words: list[str]) -> int:
    """Print a shell's script."""
    from curator.cli.completion import SHELLS, script

    usage = f'{NAME} completion SHELL ({" or ".join(SHELLS)}); in its start file: eval "$({NAME} completion bash)"'
    if words[:1] in (["-h"], ["--help"]):
        say(f"usage: {usage}")
        return 0
    if len(words) != 1 or words[0] not in SHELLS:
        raise BadInputError(f"give one shell: {usage}")
    say(script(words[0], [*FIRST_PAGE, *SECOND_PAGE], list(LAB_PAGE)).rstrip())
    return 0


def _dispatch(verb: str, rest: list[str], group: str, known: Mapping[str, str], name: str) -> int:
    """Run a verb as if it were a program of its own."""
    if verb in COMMANDS:
        from curator.__main__ import main as curator_main

        with console_started([name, verb, *rest]):
            return curator_main([verb, *rest])
    found = verbs(group).get(verb)
    if found is None:
        if verb in known:
            raise MissingDependencyError(f"{verb} is not installed here: install the package again, with its commands")
        kind, names = ("option", _OPTIONS) if verb.startswith("-") else ("verb", tuple(known))
        raise BadInputError(f"there is no {kind} {verb!r}{meant(verb, names)}; {name} --help lists them")
    with console_started([f"{name} {verb}", *rest]):
        try:
            return int(found.load()(rest) or 0)
        except ModuleNotFoundError as error:
            package = found.module.partition(".")[0]
            if package not in _EXTRAS or (error.name or "").partition(".")[0] in ("curator", "sql", *_EXTRAS):
                raise  # a fault of ours, not an absent package
            extra = "demo" if verb == "demo" else _EXTRAS[package]
            raise MissingDependencyError(f"{verb} needs {error.name}: pip install 'ballast-mix[{extra}]'") from error


def _say_help(*, everything: bool) -> None:
    say(f"usage: {NAME} VERB ...\n")
    say("Finds the safest rows of a corpus by perplexity gap and mixes them into fine-tuning data, against")
    say("emergent misalignment.\n")
    _say_page(FIRST_PAGE)
    say("\nfurther:")
    _say_page(SECOND_PAGE)
    if everything:
        say(f"\n{NAME} lab VERB:")
        _say_page(LAB_PAGE)
    say(f"\n`{NAME} VERB --help` explains one; `{NAME} lab` lists research commands, `{NAME} --help-all` all.")
    say(f'`eval "$({NAME} completion bash)"` (or zsh) makes the shell complete verbs and options.')
    say(f"start: {NAME} try")


def _say_page(page: Mapping[str, str]) -> None:
    for verb, text in page.items():
        say(f"  {verb:<18}{text}")


if __name__ == "__main__":
    sys.exit(main())
