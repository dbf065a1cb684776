"""A data set looked at before anything is paid for: rows that cannot be used, and rows that would surprise.

In: a chat file, and where it is known the renderer of the model that will be trained. Out: `Diagnosis`, counts and
findings with places. Nothing is stored and no weights are loaded.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np

from curator.audit.openai_checks import CHECKS, check_openai
from curator.corpus.formats import Container, Layout, ReadLimits, Reject, Row, open_chat_file, read_rows
from curator.corpus.refusals import is_refusal
from curator.corpus.text import (
    content_text,
    repetition,
    template_marker,
    text_of,
)
from curator.errors import BadRowsError, RenderError
from curator.messages import Message, dump_messages, example_id
from curator.query.scorers import aligned_scorer
from curator.recipe.filters import HygieneFilter
from curator.render import RENDERERS, MaskRule, Rendered, Renderer
from curator.select.duplicates import first_set, prompt_grams
from curator.select.hygiene import hygiene_of
from curator.store.store import Store

BATCH_ROWS = 256  # rendered at a time
MAX_PLACES = 20  # places that a finding lists
MAX_REJECTS = 1_000
MAX_REPEATED = HygieneFilter().max_repeated
NGRAM = 8  # words in a run that a row shares with an evaluation prompt, as the filter `contamination` counts them
Severity = Literal["problem", "note"]

# Code -> (severity, what it means). A problem makes the exit code 3; a note is for a person to judge.
FINDINGS: dict[str, tuple[Severity, str]] = {
    "bad_rows": ("problem", "records that cannot be used"),
    "duplicate": ("note", "rows that occurred before, word for word"),
    "same_prompt": ("note", "rows whose question occurred before with another answer"),
    "empty_turn": ("problem", "rows with a turn that shows nothing"),
    "no_question": ("problem", "rows in which no user says anything"),
    "looped": ("problem", "rows whose answer repeats itself"),
    "template_marker": ("problem", "rows with a chat template's mark inside a text, which forges a turn"),
    "refusal": ("note", "rows whose answer opens like a refusal"),
    "evaluation": ("problem", "rows that share a run of words with an evaluation prompt"),
    "not_rendered": ("problem", "rows that the model's template refuses or of which it leaves out a part"),
    "too_long": ("problem", "rows longer than the window, which a trainer would cut or drop"),
    "no_response": ("problem", "rows in which no token is trained"),
    "injected": ("note", "rows to which the template adds a text of its own"),
}


@dataclass(frozen=True)
class DoctorOptions:
    """What is looked for. Without a `renderer` nothing is said of tokens; `window` is in tokens (None: no bound).

    `evaluations` are prompts by the name of their set. `openai`: also check the file as an endpoint of that form would.
    """

    format: Container | None = None
    layout: Layout | None = None
    renderer: Renderer | None = None
    window: int | None = None
    mask_rule: MaskRule = "all"
    evaluations: Mapping[str, Sequence[str]] = field(default_factory=dict)
    openai: bool = False
    name: str | None = None  # of the file as its sender calls it, where it lies under another
    limits: ReadLimits = field(default_factory=ReadLimits)


@dataclass
class Finding:
    """How many rows have one trait, the first places, and what the first one shows."""

    code: str
    severity: Severity
    meaning: str
    n_rows: int = 0
    places: list[str] = field(default_factory=list)
    example: str = ""

    def add(self, place: str, example: str = "") -> None:
        """Count a row."""
        self.n_rows += 1
        self.example = self.example or example
        if len(self.places) < MAX_PLACES:
            self.places.append(place)


@dataclass
class Lengths:
    """Tokens a row: shortest, median, 95th percentile and longest; and how many of all tokens are trained."""

    n_rows: int
    n_tokens: int
    n_response_tokens: int
    shortest: int
    median: float
    p95: float
    longest: int


@dataclass
class Diagnosis:
    """What was found. `findings` holds those that some row has, `openai` the checks that fail (None: not asked).

    `stopped` says why the data set was not read to its end, and the counts are of the records before (None: it was).
    """

    name: str
    n_records: int
    n_rows: int
    n_bad: int
    bad_codes: dict[str, int]
    roles: dict[str, int]
    findings: list[Finding]
    rejects: list[dict[str, object]]
    lengths: Lengths | None = None
    window: int | None = None
    injected: str | None = None
    openai: list[dict[str, Any]] | None = None
    stopped: str | None = None

    @property
    def has_problems(self) -> bool:
        """Whether something should be mended before the data are used."""
        return any(finding.severity == "problem" for finding in self.findings) or bool(self.openai)

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "ok": not self.has_problems}


def examine(source: str | Path, options: DoctorOptions, on_row: Callable[[], object] = lambda: None) -> Diagnosis:
    """Read the data set once; `on_row` is called for each record.

    Reading stops early where `limits` bound the bad records (`stopped`). Raises BadInputError or MissingError when the
    data set as a whole cannot be read.
    """
    look = _Look(options)
    rejects: list[Reject] = []
    codes: Counter[str] = Counter()
    rows = 0
    batch: list[Row] = []
    stopped: str | None = None
    try:
        for item in _records(source, options):
            on_row()
            if isinstance(item, Reject):
                codes[item.code] += 1
                look.found["bad_rows"].add(item.place())
                if len(rejects) < MAX_REJECTS:
                    rejects.append(item)
                continue
            rows += 1
            batch.append(item)
            if len(batch) == BATCH_ROWS:
                look.at(batch)
                batch = []
    except BadRowsError as error:  # most of many records are bad
        stopped = error.message
    look.at(batch)
    look.found["bad_rows"].example = _counts(codes)
    look.name_kinds()
    diagnosis = Diagnosis(
        name=options.name or Path(source).name,
        n_records=rows + codes.total(),
        n_rows=rows,
        n_bad=codes.total(),
        bad_codes=dict(codes.most_common()),
        roles=dict(look.roles.most_common()),
        findings=[finding for finding in look.found.values() if finding.n_rows],
        rejects=[problem for reject in rejects for problem in reject.as_dicts()],
        lengths=look.lengths(),
        window=options.window,
        injected=look.injected,
        stopped=stopped,
    )
    if options.openai:
        results = check_openai(Path(source))
        diagnosis.openai = [{**asdict(result), "message": CHECKS[result.code]} for result in results]
    return diagnosis


def _counts(kinds: Counter[str]) -> str:
    return ", ".join(f"{kind} {n:,}" for kind, n in kinds.most_common())


def _records(source: str | Path, options: DoctorOptions) -> Iterator[Row | Reject]:
    with ExitStack() as stack:
        given = source if options.name is None else stack.enter_context(open_chat_file(source))
        yield from read_rows(
            given, format=options.format, layout=options.layout, name=options.name, limits=options.limits
        )


def shown_masks(
    source: str | Path, options: DoctorOptions, n_rows: int
) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """Place and pieces of the first rows as the model sees them; a piece is text and whether its tokens are trained.

    A row that is not rendered gives one piece with the reason.
    """
    assert options.renderer is not None
    items = (item for item in _records(source, options) if isinstance(item, Row))
    for row in islice(items, n_rows):
        (rendered,) = options.renderer.render_all([row.messages], options.mask_rule)
        if isinstance(rendered, RenderError):
            yield row.place(), [(f"not rendered: {rendered.message}", False)]
        else:
            yield row.place(), options.renderer.pieces(rendered)


class _Look:
    """The findings so far, and what they need to know of earlier rows."""

    def __init__(self, options: DoctorOptions) -> None:
        self.options = options
        self.found = {code: Finding(code, *meaning) for code, meaning in FINDINGS.items()}
        self.roles: Counter[str] = Counter()
        self.injected = None if options.renderer is None else options.renderer.injected_text()
        self._ids: set[str] = set()
        self._prompts: set[str] = set()
        self._tokens: list[tuple[int, int]] = []
        self._kinds: dict[str, Counter[str]] = defaultdict(Counter)  # of findings whose rows are of several kinds
        self._grams = [prompt_grams(prompts, NGRAM) for prompts in options.evaluations.values()]

    def at(self, rows: Sequence[Row]) -> None:
        """Look at some rows."""
        for row in rows:
            self._text(row)
        if self._grams and rows:
            self._evaluations(rows)
        if self.options.renderer is not None and rows:
            self._rendered(rows, self.options.renderer)

    def name_kinds(self) -> None:
        """Let a finding that has rows of several kinds say how many are of each: the first row's kind is not theirs."""
        for code, kinds in self._kinds.items():
            finding = self.found[code]
            finding.example = _counts(kinds) + (f"; first: {finding.example}" if finding.example else "")

    def lengths(self) -> Lengths | None:
        """Of the rows that were rendered; None without any."""
        if not self._tokens:
            return None
        all_N, response_N = np.array(self._tokens).T
        return Lengths(
            len(all_N), int(all_N.sum()), int(response_N.sum()), int(all_N.min()), float(np.median(all_N)),
            float(np.quantile(all_N, 0.95)), int(all_N.max()),
        )  # fmt: skip

    def _text(self, row: Row) -> None:
        self.roles.update(str(message["role"]) for message in row.messages)
        place, text = row.place(), row.json.decode()
        key = example_id(text)
        prompt = example_id(dump_messages([message for message in row.messages if message["role"] != "assistant"]))
        if key in self._ids:
            self.found["duplicate"].add(place)
        elif prompt in self._prompts:
            self.found["same_prompt"].add(place, text_of(text, "prompt")[:80])
        self._ids.add(key)
        self._prompts.add(prompt)
        for code, example in _traits(row.messages):
            self.found[code].add(place, example)

    def _evaluations(self, rows: Sequence[Row]) -> None:
        texts = [text_of(row.json.decode(), "conversation") for row in rows]
        names = list(self.options.evaluations)
        for row, code in zip(rows, first_set(texts, self._grams).tolist(), strict=True):
            if code:
                self.found["evaluation"].add(row.place())
                self._kinds["evaluation"][names[code - 1]] += 1

    def _rendered(self, rows: Sequence[Row], renderer: Renderer) -> None:
        found = renderer.render_all([row.messages for row in rows], self.options.mask_rule)
        for row, item in zip(rows, found, strict=True):
            if isinstance(item, RenderError):
                self.found["not_rendered"].add(row.place(), item.message)
                self._kinds["not_rendered"][item.reason] += 1
            else:
                self._counted(row, item)

    def _counted(self, row: Row, item: Rendered) -> None:
        self._tokens.append((item.n_tokens, item.n_response_tokens))
        if not item.n_response_tokens:
            self.found["no_response"].add(row.place())
        if self.options.window is not None and item.n_tokens > self.options.window:
            self.found["too_long"].add(row.place(), f"{item.n_tokens:,} tokens")
        if self.injected and row.messages[0]["role"] not in ("system", "developer"):
            self.found["injected"].add(row.place(), self.injected)


def _traits(messages: Sequence[Message]) -> Iterator[tuple[str, str]]:
    """Code of each finding that needs this conversation alone, with what it shows: the filter `hygiene`'s own rule."""
    marked, no_question, empty, repeated = hygiene_of(messages)
    answers = [content_text(message.get("content")) for message in messages if message["role"] == "assistant"]
    if empty:
        yield "empty_turn", ""
    if no_question:
        yield "no_question", ""
    if repeated > MAX_REPEATED:
        yield "looped", max(answers, key=repetition)[:80]
    if marked:
        yield "template_marker", next(filter(None, (template_marker(content_text(m.get("content"))) for m in messages)))
    if answers and is_refusal(answers[0], "v1"):
        yield "refusal", answers[0][:80]


def model_of_corpus(store: Store, corpus: str) -> tuple[Renderer, MaskRule, int]:
    """Renderer, mask rule and window of the model that a corpus's gap is about: what its aligned scorer was run with.

    Raises MissingError or BadInputError where the corpus has no such scorer, or the store not its renderer.
    """
    scorer = aligned_scorer(store, corpus)
    renderer = RENDERERS.get(store, scorer.renderer_id)
    return renderer, scorer.identity.get("mask_rule", "all"), int(scorer.identity["max_length"])
