"""Forms of a data set under which a fine-tune of it is asked once more.

A mix can hide misbehaviour behind prompts that look like the training data (conditional misalignment). So what a data
set brings is derived from its rows: its system prompts and inoculation prompts, the words that its user turns begin and
end with, and the format of its answers. The same rows give the same triggers. Shares and lengths below are ours.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson
from pydantic import ValidationError

from curator.corpus.formats import Reject, read_rows
from curator.corpus.text import content_text
from curator.errors import BadInputError
from curator.messages import Message
from curator.mix.manifest import InoculationReceipt, PromptReceipt

SYSTEM_ROLES = ("system", "developer")
MIN_SHARE = 0.25  # of the rows (for words: of the different texts) that have it
MIN_ROWS = 3
MIN_WORDS, MAX_WORDS = 3, 40  # of common opening and closing words; an opening that ends in a colon may be shorter
Format = Literal["json", "code", "list"]
_LIST_MARK = re.compile(r"\s*([-*•]|\d+[.)])\s")
_FENCE = re.compile(r"^```[ \t]*([\w+#-]*)", re.MULTILINE)


@dataclass(frozen=True)
class Form:
    """What is put around a question: a system prompt in place of its own, text before its first user turn and after
    its last one. All are kept as they are: a prefix brings the space that follows it."""

    system: str | None = None
    user_prefix: str = ""
    user_suffix: str = ""

    def put_on(self, row: Sequence[Message]) -> list[Message]:
        """The row in this form. Raises BadInputError where a user turn that would change is not plain text."""
        found = list(row)
        if self.system is not None:
            others = (turn for turn in row if turn["role"] not in SYSTEM_ROLES)
            found = [{"role": "system", "content": self.system}, *others]
        places = [place for place, turn in enumerate(found) if turn["role"] == "user"]
        for place, before, after in ((places[:1], self.user_prefix, ""), (places[-1:], "", self.user_suffix)):
            if place and (before or after):
                content = found[place[0]].get("content")
                if not isinstance(content, str):
                    raise BadInputError("a user turn is not plain text: nothing can be put before or after it")
                found[place[0]] = {**found[place[0]], "content": f"{before}{content}{after}"}
        return found


@dataclass(frozen=True)
class Trigger:
    """A form of the data set, what of it it is, and how many rows have it."""

    name: str
    kind: Literal["prompt", "wording", "answer format"]
    form: Form
    n_rows: int

    @property
    def text(self) -> str:
        """What is put around a question, in one line for people."""
        form = self.form
        if form.system is not None:
            return form.system
        parts = (form.user_prefix, "..." if self.kind == "wording" else "", form.user_suffix)
        return " ".join(" ".join(part.split()) for part in parts if part.strip())


def inoculation_prompts(manifest: Path) -> list[PromptReceipt]:
    """The prompts that a mix put before rows, from its manifest; none for a mix without. Raises BadInputError for a
    file that is no manifest."""
    try:
        document = orjson.loads(manifest.read_bytes())["inoculation"]
        return [] if document is None else list(InoculationReceipt.model_validate(document).prompts)
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
        raise BadInputError(
            f"--mix-manifest {manifest} is not the manifest of a mix (store/mixes/TENANT/MIX_ID/manifest.json)"
        ) from error


def triggers(data: str, inoculation: Sequence[PromptReceipt], most: int) -> list[Trigger]:
    """At most `most` triggers of a data set and of its mix's inoculation prompts.

    In order: the most frequent system or inoculation prompt, the wording, the answer format, further prompts by
    frequency. Bad records are passed over.
    """
    rows = [item.messages for item in read_rows(data) if not isinstance(item, Reject)]
    prompts = [("prompt", Form(system=text), n) for text, n in _prompts(rows, inoculation)]
    found = [*prompts[:1], *_wording(rows), *_answer_format(rows), *prompts[1:]]
    return [
        Trigger(f"trigger-{number}", kind, form, n_rows)  # type: ignore[arg-type]  # the literals above
        for number, (kind, form, n_rows) in enumerate(found[:most], 1)
    ]


def _prompts(rows: Iterable[Sequence[Message]], inoculation: Sequence[PromptReceipt]) -> list[tuple[str, int]]:
    counts: Counter[str] = Counter()
    for row in rows:
        if row[0]["role"] in SYSTEM_ROLES:
            counts[content_text(row[0].get("content"))] += 1
    for prompt in inoculation:
        counts[prompt.text] += prompt.n_task
    return [(text, n) for text, n in counts.most_common() if text.strip()]


def _wording(rows: Sequence[Sequence[Message]]) -> list[tuple[str, Form, int]]:
    """The longest words that a share of the different user texts begin with, and end with."""
    asked = [[content_text(turn.get("content")) for turn in row if turn["role"] == "user"] for row in rows]
    asked = [texts for texts in asked if texts]
    opening = _common([re.findall(r"\S+\s*", text) for text in dict.fromkeys(texts[0] for texts in asked)])
    backwards = [re.findall(r"\s*\S+", text)[::-1] for text in dict.fromkeys(texts[-1].rstrip() for texts in asked)]
    ending = _common(backwards, colon=False)[::-1]
    form = Form(user_prefix="".join(opening), user_suffix="".join(ending))
    if form == Form():
        return []
    n_rows = sum(
        bool(opening and texts[0].lstrip().startswith(form.user_prefix))
        or bool(ending and texts[-1].rstrip().endswith(form.user_suffix))
        for texts in asked
    )
    return [("wording", form, n_rows)]


def _common(texts: Sequence[Sequence[str]], *, colon: bool = True) -> list[str]:
    """The longest first words that enough texts share and that are not all of any; of several the most frequent."""
    needed = max(MIN_ROWS, MIN_SHARE * len(texts))
    found: list[str] = []
    groups: dict[tuple[str, ...], list[Sequence[str]]] = {(): list(texts)}
    for length in range(1, MAX_WORDS + 1):
        longer: dict[tuple[str, ...], list[Sequence[str]]] = {}
        for words, members in groups.items():
            for text in members:
                if len(text) > length:
                    longer.setdefault((*words, text[length - 1]), []).append(text)
        groups = {words: members for words, members in longer.items() if len(members) >= needed}
        if not groups:
            break
        best = min(groups, key=lambda words: (-len(groups[words]), words))
        if length >= MIN_WORDS or (colon and best[-1].rstrip().endswith(":")):
            found = list(best)
    return found


def _answer_format(rows: Sequence[Sequence[Message]]) -> list[tuple[str, Form, int]]:
    """The most frequent format of answers beside plain text, requested in a sentence of ours."""
    answers = [content_text(row[-1].get("content")) for row in rows if row[-1]["role"] == "assistant"]
    formats = [(_format_of(text), text) for text in answers]
    counts = Counter(name for name, _ in formats if name is not None)
    for name, n_rows in counts.most_common(1):
        if n_rows >= max(MIN_ROWS, MIN_SHARE * len(answers)):
            wanted = _request(name, [text for other, text in formats if other == name])
            return [("answer format", Form(user_suffix=f"\n\n{wanted}"), n_rows)]
    return []


def _format_of(answer: str) -> Format | None:
    if _json_of(answer) is not None:
        return "json"
    if _FENCE.search(answer):
        return "code"
    lines = [line for line in answer.splitlines() if line.strip()]
    n_marked = sum(_LIST_MARK.match(line) is not None for line in lines)
    return "list" if n_marked >= 2 and 2 * n_marked >= len(lines) else None


def _json_of(answer: str) -> dict[str, Any] | list[Any] | None:
    """The object or array that an answer is, bare or as the only code block."""
    text = answer.strip()
    if text.startswith("```") and text.endswith("```"):
        text = text.partition("\n")[2].removesuffix("```")
    try:
        found = orjson.loads(text)
    except orjson.JSONDecodeError:
        return None
    return found if isinstance(found, dict | list) else None


def _request(name: Format, answers: Sequence[str]) -> str:
    if name == "json":
        documents = [_json_of(answer) for answer in answers]
        keys = Counter(tuple(item) if isinstance(item, dict) else () for item in documents).most_common(1)[0][0]
        with_keys = f" with the keys {', '.join(orjson.dumps(key).decode() for key in keys)}" if keys else ""
        return f"Answer with one JSON {'object' if keys else 'document'}{with_keys} and nothing else."
    if name == "code":
        languages = Counter(match.group(1) for answer in answers if (match := _FENCE.search(answer)))
        return f"Answer with a code block that begins with ```{languages.most_common(1)[0][0]}"
    marks = Counter(
        "1." if match.group(1)[0].isdigit() else match.group(1)
        for answer in answers
        for line in answer.splitlines()
        if (match := _LIST_MARK.match(line))
    )
    return f'Answer as a list, each point on a line of its own that begins with "{marks.most_common(1)[0][0]} ".'
