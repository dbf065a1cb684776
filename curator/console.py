"""What the commands of all three packages print: lines and JSON on stdout, progress and errors on stderr, text tables.

`run_command` runs one command and turns its errors into exit codes. `Progress` shows rate and time left. Corpus text
may hold line breaks, terminal escapes and markup; the tables here give back plain printable lines.
"""

import argparse
import html
import os
import re
import sys
import time
import tomllib
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import orjson

from curator.errors import BallastError

Row = Mapping[str, object]
CONSOLE_COMMAND, DISTRIBUTION = "ballast", "ballast-mix"  # "ballast" on the package index is another's
VERBS_GROUP, LAB_GROUP = "ballast.verbs", "ballast.lab"  # entry points: the console command's verbs
_STARTED_AS = "_BALLAST_STARTED_AS"  # of a process and those that it starts
STOPPED = "stopped; what is complete is kept, and the same command goes on from there"
HELP_ALL = "--help-all"
QUIET_S = 2.0  # work shorter than this shows nothing
PLAIN_EVERY_S = 10.0  # between two lines when stderr is a file or a pipe
MAX_CELL = 60
MIN_CELL = 12
MAX_LIST = 24  # characters of a list of texts that is shown, not counted
SHORT_ID = 8
_HEX_ID = re.compile(r"[0-9a-f]{32,64}")
_CHOICE = re.compile(r"invalid choice: '([^']*)' \(choose from (.*)\)$")  # argparse's words
_MARKUP = re.compile(r"([\\`*_\[\]|#~!$])")
_HARMLESS = re.compile(r"\\([!-/:-@\[-`{-~])|&(?:amp|lt|gt);")  # how Markdown shows a character of its own markup


def run_command(run: Callable[[argparse.Namespace], int], args: argparse.Namespace, *, stopped: str = STOPPED) -> int:
    """Run one command; returns its exit code: 2 for input that cannot be used, 130 after Ctrl-C.

    `args.json` (false where a command lacks the option) adds the error as a JSON document on stdout. `stopped` is
    the line on stderr after Ctrl-C.
    """
    try:
        return int(run(args))
    except BallastError as error:
        report_error(error, as_json=getattr(args, "json", False))
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"{stopped}\n")
        return 130
    except BrokenPipeError:  # `| head` closed our output
        sys.stderr.close()
        return 0


def report_error(error: BallastError, *, as_json: bool) -> None:
    """One line on stderr, unless the command that failed has said it there; with --json also the error body that the
    HTTP service uses, on stdout."""
    if as_json:
        say_json({"error": {"code": error.code, "message": as_typed(error.message), "details": error.details}})
    if not error.is_told:
        sys.stderr.write(f"error: {' '.join(as_typed(error.message).split())}\n")


def flags(options: Mapping[str, Any]) -> list[object]:
    """`{"max_steps": 5, "full": True, "rslora": False, "kl": None, "broad": [a, b]}` as
    `--max-steps 5 --full --no-rslora --broad a --broad b`.

    Nulls are left out; an option that has no `--no-` form refuses false by itself.
    """
    found: list[object] = []
    for name, value in options.items():
        words = name.replace("_", "-")
        for item in value if isinstance(value, list | tuple) else [value]:
            if isinstance(item, bool):
                found.append(f"--{words}" if item else f"--no-{words}")
            elif item is not None:
                found += [f"--{words}", item]
    return found


class CommandHelp(argparse.RawDescriptionHelpFormatter):
    """Text as written, and each command's help beside its name.

    argparse forgets that commands are indented when it measures their column, so the longest name would stand on a
    line of its own.
    """

    def add_argument(self, action: argparse.Action) -> None:
        """Make the column as much wider as commands are indented."""
        before = self._action_max_length
        super().add_argument(action)
        if isinstance(action, argparse._SubParsersAction) and self._action_max_length > before:
            self._action_max_length += self._indent_increment


def shorten_help(parser: argparse.ArgumentParser, shown: Collection[str]) -> None:
    """Let `--help` list only the options `shown` and arguments without a name; `--help-all` lists every option.

    Raises KeyError for a name that the parser does not have. All options can be given either way.
    """
    options = [action for action in parser._actions if action.option_strings and action.help != argparse.SUPPRESS]
    unknown = set(shown) - {name for action in options for name in action.option_strings}
    if unknown:
        raise KeyError(f"no option {sorted(unknown)[0]}")
    hidden = [
        action
        for action in options
        if not set(action.option_strings) & set(shown) and not isinstance(action, argparse._HelpAction)
    ]
    whole = parser.format_help
    parser.add_argument(HELP_ALL, action=_HelpAll, whole=whole, help=f"show {len(hidden)} further options as well")

    def short(write: Callable[[], str]) -> Callable[[], str]:
        def written() -> str:
            texts = [action.help for action in hidden]
            for action in hidden:
                action.help = argparse.SUPPRESS
            try:
                return write()
            finally:
                for action, text in zip(hidden, texts, strict=True):
                    action.help = text

        return written

    parser.format_usage = short(parser.format_usage)  # type: ignore[method-assign]
    parser.format_help = short(whole)  # type: ignore[method-assign]


def meant(word: str, known: Collection[str]) -> str:
    """`; did you mean NAME?` with the name that is nearest to a mistyped one; empty where none is near."""
    near = get_close_matches(word, known, 1)
    return f"; did you mean {near[0]}?" if near else ""


class OldName(argparse.Action):
    """An option under the name that it had: not listed, and a warning names the present one."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, present: argparse.Action) -> None:
        super().__init__(
            option_strings,
            dest,
            nargs=present.nargs,
            type=present.type,  # type: ignore[arg-type]  # typeshed: a registered name too
            choices=present.choices,
            default=argparse.SUPPRESS,
            help=argparse.SUPPRESS,
        )
        self.present = present

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Do what the option does under its present name."""
        warn(f"{option_string} is called {self.present.option_strings[0]} now")
        self.present.required = False  # it was given
        self.present(parser, namespace, values, option_string)


def add_renamed(group: Any, name: str, old: str, **settings: Any) -> None:
    """Declare an option that was called `old` in a parser or a group of one: both names are taken, one is listed."""
    present = group.add_argument(name, **settings)
    group.add_argument(old, action=OldName, dest=present.dest, present=present)


class _HelpAll(argparse.Action):
    """Print the whole help and end."""

    def __init__(self, option_strings: Sequence[str], dest: str, *, whole: Callable[[], str], help: str) -> None:  # noqa: A002 - argparse's word
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help=help)
        self.whole = whole

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        sys.stdout.write(self.whole())
        parser.exit()


class CommandParser(argparse.ArgumentParser):
    """The parser of every command. An unknown option ends in the usage of the command it was given to, and names the
    option that was probably meant; argparse shows the usage of the whole program. Commands are named `as_typed`."""

    _words: Sequence[str] = ()  # what is parsed

    def __init__(self, *, prog: str | None = None, **settings: Any) -> None:
        super().__init__(prog=None if prog is None else as_typed(prog), **settings)

    def format_help(self) -> str:
        """The whole help."""
        return as_typed(super().format_help())

    def error(self, message: str) -> NoReturn:
        """Usage and message on stderr; exit code 2. A mistyped name is answered with the nearest one."""
        chosen = _CHOICE.search(message)
        if chosen:
            message += meant(chosen[1], re.findall(r"[\w-]+", chosen[2]))
        elif message.startswith("the following arguments are required"):
            # The one that is missing may be there, mistyped: argparse looks for the missing first.
            message += "".join(f"; {word}: no such option{meant(word, self._options())}" for word in self._unknown())
        super().error(as_typed(message))

    def _options(self) -> list[str]:
        return list(self._option_string_actions)

    def _unknown(self) -> list[str]:
        """Words that look like options and are none, nor the beginning of one."""
        known = tuple(self._options())
        names = [word.partition("=")[0] for word in self._words if word.startswith("--") and word != "--"]
        return [name for name in names if not any(option.startswith(name) for option in known)]

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; `--help-all` is the help also of a command whose help lists everything."""
        self._words = words = sys.argv[1:] if args is None else list(args)
        has_commands = any(isinstance(action, argparse._SubParsersAction) for action in self._actions)
        asks = HELP_ALL in (words[:1] if has_commands else words)
        if asks and HELP_ALL not in self._option_string_actions:
            self.print_help()
            self.exit()
        return super().parse_known_args(args, namespace)

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse's; exit code 2 for what no option takes."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            parser = self._chosen(found)
            near = meant(unknown[0].partition("=")[0], parser._options())
            parser.error(f"unrecognized arguments: {' '.join(unknown)}{near}")
        return found

    def _chosen(self, found: argparse.Namespace) -> "CommandParser":
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                chosen: CommandParser = action.choices.get(getattr(found, action.dest), self)
                return chosen
        return self


@contextmanager
def console_started(argv: Sequence[str]) -> Iterator[None]:
    """While the console command runs: argparse finds its words, and commands are named as it names them, here and in
    processes that this one starts."""
    words, named = sys.argv, os.environ.get(_STARTED_AS)
    sys.argv, os.environ[_STARTED_AS] = list(argv), CONSOLE_COMMAND
    try:
        yield
    finally:
        sys.argv = words
        if named is None:
            os.environ.pop(_STARTED_AS, None)
        else:
            os.environ[_STARTED_AS] = named


def as_typed(text: str) -> str:
    """A text's commands as the person who started this process types them.

    Texts name a command `python -m MODULE ...`; for who typed `ballast` that is its verb. Help, usage, errors and
    warnings pass through here by themselves; a line of `say` that names a command is handed to it. What is written
    into a file does not depend on how the process was started.
    """
    if os.environ.get(_STARTED_AS) != CONSOLE_COMMAND:
        return text
    forms = _console_forms()
    pattern = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
    return re.sub(rf"(?:{pattern})(?![\w-]|\.\w)", lambda found: forms[found[0]], text)


@cache
def _console_forms() -> dict[str, str]:
    """For each module that runs as a command, what the console command calls it."""
    found = {"python -m curator": CONSOLE_COMMAND}
    for group, name in ((VERBS_GROUP, CONSOLE_COMMAND), (LAB_GROUP, f"{CONSOLE_COMMAND} lab")):
        for item in entry_points(group=group):
            module, _, function = item.value.partition(":")
            words = module.removesuffix(".__main__") + ("" if function == "main" else f" {function}")
            found[f"python -m {words}"] = f"{name} {item.name}"
    return found


@cache
def product_version() -> str:
    """The installed version; in a bare checkout, which nobody installed, the one that its pyproject.toml names."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))
        return str(project["project"]["version"])


def say(text: str = "") -> None:
    """Write one line to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def warn(text: str) -> None:
    """One line on stderr, at once: a command that runs for hours goes on, and its answer on stdout stays as it is."""
    sys.stderr.write(f"warning: {' '.join(as_typed(text).split())}\n")
    sys.stderr.flush()


def say_json(document: object) -> None:
    """Print one indented JSON document."""
    say(orjson.dumps(document, option=orjson.OPT_INDENT_2).decode())


def list_problems(problems: Sequence[Mapping[str, Any]]) -> None:
    """One line on stderr for each problem of a bad record (`Reject.as_dicts`)."""
    for item in problems:
        place = f"record {item['record']}" if item["line"] is None else f"line {item['line']}"
        at = f" (byte {item['byte_offset']})" if item["line"] is None and item["byte_offset"] is not None else ""
        sys.stderr.write(f"  {place}{at} {item['pointer'] or '/'}: {item['code']}: {item['message']}\n")
    sys.stderr.flush()


class Progress:
    """Progress of one piece of work: `with Progress(total, "rows", "scoring") as bar: bar.advance(5)`.

    `total` counts in `unit` and may be None when unknown. On a terminal it is a bar; otherwise one plain line
    every ten seconds, the first after two. BALLAST_PROGRESS=0 silences both.
    """

    def __init__(self, total: int | None, unit: str, label: str) -> None:
        self.total, self.unit, self.label = total, unit, label
        self.done = 0
        self._fields: dict[str, object] = {}
        self._bar: Any = None
        self._enabled = os.environ.get("BALLAST_PROGRESS", "1") != "0"

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._next_line = self._started + QUIET_S
        self._said = False
        self._first: tuple[float, int] | None = None
        if self._enabled and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total,
                unit=self.unit if self.unit == "B" else f" {self.unit}",
                unit_scale=self.unit == "B",
                desc=self.label,
                delay=QUIET_S,
                dynamic_ncols=True,
            )
        return self

    def advance(self, n: int = 1, **fields: object) -> None:
        """Count `n` more units; `fields` are shown beside the rate and stay until they change."""
        self.done += n
        if self._first is None:
            self._first = (time.monotonic(), self.done)
        self._fields.update(fields)
        if self._bar is not None:
            if fields:
                self._bar.set_postfix(self._fields, refresh=False)
            self._bar.update(n)
        elif self._enabled and time.monotonic() >= self._next_line:
            self._line()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
        elif self._enabled and self._said and kind is None:
            self._line()

    def rate(self) -> float:
        """Units a second since the first of them: before it a model is loaded, or what an earlier run did is counted,
        and neither says how fast the rest goes. From the start until there is a second step."""
        now = time.monotonic()
        since, before = (self._started, 0) if self._first is None else self._first
        if self.done == before:
            since, before = self._started, 0
        return (self.done - before) / (now - since) if now > since else 0.0

    def _line(self) -> None:
        self._next_line, self._said = time.monotonic() + PLAIN_EVERY_S, True
        sys.stderr.write(progress_line(self) + "\n")
        sys.stderr.flush()


def progress_line(progress: Progress) -> str:
    """One plain line: label, done of total, rate per second, time left in seconds and the extra fields."""
    rate = progress.rate()
    parts = [f"{progress.label}: {_count(progress.done, progress.unit)}"]
    if progress.total is not None:
        parts[0] += f" of {_count(progress.total, progress.unit)}"
    parts.append(f"{_count(rate, progress.unit)}/s")
    if progress.total is not None and rate > 0:
        parts.append(f"{max(progress.total - progress.done, 0) / rate:.0f} s left")
    parts += [f"{name} {value}" for name, value in progress._fields.items()]
    return ", ".join(parts)


def text_table(columns: Sequence[str], rows: Sequence[Row], width: int = 160) -> str:
    """An aligned table, numbers to the right; text columns shrink (to 12 characters) until lines fit `width`."""
    cells = [[cell(row[name]) for name in columns] for row in rows]
    numeric = [all(isinstance(row[name], int | float | None) for row in rows) for name in columns]
    heads = [
        _wrapped(name, max([MIN_CELL, *(len(line[place]) for line in cells)])) for place, name in enumerate(columns)
    ]
    widths = [
        max([*map(len, heads[place]), *(len(line[place]) for line in cells)], default=0)
        for place in range(len(columns))
    ]
    while sum(widths) + 2 * len(widths) - 2 > width:
        shrinkable = [place for place, right in enumerate(numeric) if not right and widths[place] > MIN_CELL]
        if not shrinkable:
            break
        widths[max(shrinkable, key=lambda place: widths[place])] -= 1
    height = max((len(head) for head in heads), default=1)
    lines = [[[""] * (height - len(head)) + head for head in heads][place] for place in range(len(columns))]
    table = [[lines[place][level] for place in range(len(columns))] for level in range(height)]
    table.append(["-" * size for size in widths])
    table += cells
    return "\n".join(_aligned(line, widths, numeric) for line in table)


def markdown_table(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """A Markdown table of the same cells, with markup in values made harmless."""
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(escape_markdown(cell(row[name])) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def escape_markdown(text: str) -> str:
    """One-line text that Markdown shows as it is: no markup, links, HTML or table breaks."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKUP.sub(r"\\\1", text)


def unescape_markdown(text: str) -> str:
    """The text that `escape_markdown` had been given."""
    return _HARMLESS.sub(lambda found: found[1] or html.unescape(found[0]), text)


def cell(value: object, width: int = MAX_CELL) -> str:
    """One value as short text: null, six significant digits, long lists by their length, ids by their beginning."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, int):
        return f"{value}"
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        texts = ", ".join(value)
        return one_line(texts) if len(texts) <= MAX_LIST else f"[{len(value)} items]"
    if isinstance(value, list | dict):
        return f"[{len(value)} items]"
    text = str(value)
    return text[:SHORT_ID] + "…" if _HEX_ID.fullmatch(text) else one_line(text, width)


def one_line(text: str, width: int = MAX_CELL) -> str:
    """`text` on one line of at most `width` characters: white space folded, unprintable characters shown as ?."""
    folded = " ".join(text.split())
    plain = "".join("?" if unicodedata.category(char)[0] in "CZ" and char != " " else char for char in folded)
    return plain if len(plain) <= width else plain[: width - 1] + "…"


def _count(number: float, unit: str) -> str:
    if unit == "B":
        return f"{number / 1e6:.1f} MB"
    return f"{number:,.0f} {unit}" if number >= 10 or number == int(number) else f"{number:.2f} {unit}"


def _aligned(line: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    parts = [
        one_line(text, size).rjust(size) if right else one_line(text, size).ljust(size)
        for text, size, right in zip(line, widths, numeric, strict=True)
    ]
    return "  ".join(parts).rstrip()


def _wrapped(name: str, width: int) -> list[str]:
    """A column name over several lines, broken after underscores."""
    lines = [""]
    for piece in re.findall(r"[^_]*_|[^_]+", name):
        if lines[-1] and len(lines[-1]) + len(piece) > width:
            lines.append("")
        lines[-1] += piece
    return lines
