"""Inoculation prompts: which rows get which, and putting them in and out (method.md, "Inoculation").

Pure functions of the recipe, the row counts and the seed. What is stored in a mix is the row as it is trained, under
the id of that text; beside it stand the prompt's label, the id of the row as it came, and a system turn that was
replaced. So every change can be undone, and is when a mix is verified.

Prompts go into the leading system (or developer) turn, which is made when there is none, or into the first user
turn: what stands before every trained turn. Other turns are never touched.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from curator.errors import RecipeError
from curator.messages import Message, dump_messages, load_messages
from curator.mix.order import round_half_up
from curator.recipe import Inoculation
from curator.recipe.seeds import child_seed, permutation

SYSTEM_ROLES = ("system", "developer")

Draws = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Prompt:
    """One prompt under the label that rows carry: the inoculation's name, then the source and the number of several."""

    label: str
    text: str


@dataclass(frozen=True)
class Inoculated:
    """A row's canonical messages after a prompt was put in, and the canonical JSON of a system turn it replaced."""

    messages: str
    replaced: str | None


def prompts(spec: Inoculation) -> tuple[Prompt, ...]:
    """Every prompt of a recipe's inoculation with its label, the general ones first."""
    groups = [(spec.name, spec.prompts)]
    groups += [(f"{spec.name}/{source}", texts) for source, texts in sorted(spec.by_source.items())]
    return tuple(prompt for label, texts in groups for prompt in _labelled(label, texts))


def _labelled(label: str, texts: Sequence[str]) -> list[Prompt]:
    if len(texts) == 1:
        return [Prompt(label, texts[0])]
    return [Prompt(f"{label}#{number}", text) for number, text in enumerate(texts, start=1)]


class Chooser:
    """Says for each row which prompt it gets; the same in every epoch.

    Of n rows in scope exactly round(share * n) are inoculated, halves up, counted apart for task rows and safe rows.
    The rows are the first in a seeded order of their numbers (`ordinal` for task rows, the number of `Schedule` for
    safe rows), and paraphrases are dealt out in another such order, so each is used equally often, to within one. A
    recipe that names `rows` inoculates these alone; paraphrases are dealt as if all task rows were inoculated.
    """

    def __init__(self, spec: Inoculation, n_task: int, n_safe: int, seed: int) -> None:
        self._general = _labelled(spec.name, spec.prompts)
        self._by_source = {s: _labelled(f"{spec.name}/{s}", texts) for s, texts in spec.by_source.items()}
        self._rows = None if spec.rows is None else frozenset(spec.rows)
        counts = {"task": n_task, "safe": n_safe if spec.scope == "all" else 0}
        self._draws = {origin: _draws(n_rows, spec.share, seed, origin) for origin, n_rows in counts.items()}

    def prompt(self, origin: str, index: int, source: str | None, row_id: str) -> Prompt | None:
        """The prompt of a row, or None; `source` is the row's own label, if it has one, `row_id` its id as it came."""
        draws = self._draws[origin]
        if index >= len(draws) or draws[index] < 0 or (self._rows is not None and row_id not in self._rows):
            return None
        offered = self._general if source is None else self._by_source.get(source, self._general)
        return offered[int(draws[index]) % len(offered)]


def _draws(n_rows: int, share: float, seed: int, origin: str) -> Draws:
    """For each row its place in the dealing order, or -1 where it gets no prompt."""
    dealt = permutation(n_rows, child_seed(seed, f"inoculation:paraphrase:{origin}"))
    if share < 1.0:
        n_chosen = round_half_up(Fraction(repr(share)) * n_rows)
        order = permutation(n_rows, child_seed(seed, f"inoculation:share:{origin}"))
        dealt[order[n_chosen:]] = -1
    return dealt


def inoculate(spec: Inoculation, prompt: Prompt, messages: str) -> Inoculated:
    """Canonical messages with the prompt put in.

    Raises RecipeError where the conflict rule is `error` and the row has a system turn, where a placement in the user
    turn finds none, and where the turn's content is not text.
    """
    turns = load_messages(messages)
    if spec.placement in ("user_prefix", "user_suffix"):
        place = _first_user(turns)
        joined = [prompt.text, _text(turns[place])]
        if spec.placement == "user_suffix":
            joined.reverse()
        turns[place]["content"] = spec.separator.join(joined)
        return Inoculated(dump_messages(turns), None)
    return _in_system(spec, prompt, turns)


def _in_system(spec: Inoculation, prompt: Prompt, turns: list[Message]) -> Inoculated:
    if not turns or turns[0]["role"] not in SYSTEM_ROLES:
        return Inoculated(dump_messages([{"role": "system", "content": prompt.text}, *turns]), None)
    rule = spec.system_rule
    if rule == "error":
        raise RecipeError(
            f"inoculation {spec.name}: a row has a system turn of its own, and on_system is `error`: choose `replace` "
            "or `prepend`, or a placement in the user turn"
        )
    if rule == "prepend":
        turns[0]["content"] = spec.separator.join([prompt.text, _text(turns[0])])
        return Inoculated(dump_messages(turns), None)
    replaced = dump_messages(turns[:1])
    return Inoculated(dump_messages([{"role": "system", "content": prompt.text}, *turns[1:]]), replaced)


def undo(spec: Inoculation, prompt: Prompt, row: Inoculated) -> str:
    """The canonical messages before `inoculate`; raises ValueError when the prompt is not where it was put."""
    turns = load_messages(row.messages)
    if spec.placement in ("user_prefix", "user_suffix"):
        place = _first_user(turns)
        turns[place]["content"] = _without(_text(turns[place]), prompt.text, spec, spec.placement == "user_suffix")
        return dump_messages(turns)
    if not turns or turns[0]["role"] not in SYSTEM_ROLES:
        raise ValueError("no system turn")
    if row.replaced is None and turns[0]["content"] != prompt.text:
        turns[0]["content"] = _without(_text(turns[0]), prompt.text, spec, at_end=False)
        return dump_messages(turns)
    if turns[0] != {"role": "system", "content": prompt.text}:
        raise ValueError("another system turn than the prompt")
    own = [] if row.replaced is None else load_messages(row.replaced)
    return dump_messages([*own, *turns[1:]])


def _without(text: str, prompt: str, spec: Inoculation, at_end: bool) -> str:
    added = spec.separator + prompt if at_end else prompt + spec.separator
    if not (text.endswith(added) if at_end else text.startswith(added)):
        raise ValueError("the prompt is not in its place")
    return text[: len(text) - len(added)] if at_end else text[len(added) :]


def _first_user(turns: Sequence[Message]) -> int:
    for place, turn in enumerate(turns):
        if turn["role"] == "user":
            return place
    raise RecipeError("the inoculation's placement needs a user turn, and a row has none: use a placement in system")


def _text(turn: Message) -> str:
    content = turn.get("content")
    if not isinstance(content, str):
        raise RecipeError(
            f"an inoculation prompt goes into text, and a row's {turn['role']} turn holds content parts: use "
            "placement replace_system, or leave such rows out"
        )
    return content
