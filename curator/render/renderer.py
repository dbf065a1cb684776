"""The renderer: messages in, token ids and response mask out."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import orjson
import tokenizers
from numpy.typing import NDArray

from curator.errors import BadInputError, IntegrityError, RenderError
from curator.messages import Message
from curator.render.arguments import ArgumentForms
from curator.render.counting import QuickCounter, RowTokens
from curator.render.marks import Assembled
from curator.render.mask import response_mask, token_classes
from curator.render.model_folder import RendererFiles, canonical_bytes, read_folder
from curator.render.presence import Dropped, PresenceCheck
from curator.render.settings import PARTS, Part, RenderSettings
from curator.render.spans import (
    Span,
    SpanFinder,
    probe_between,
    probe_header,
    probe_tail,
    probe_user,
)
from curator.render.template import ChatTemplate
from curator.render.tokenizer import GuardedTokenizer
from curator.render.turns import TurnCheck
from curator.render.units import Tokens
from curator.store.store import Store

MaskRule = Literal["all", "last"]

# A closed list: templates such as '<|' + role + '|>' build control tokens out of the role.
ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
FORMAT_VERSION = 1  # of the stored files
RENDER_VERSION = 2  # of the ids and masks that the same files give: raise it whenever either changes


@dataclass(frozen=True, eq=False)
class Rendered:
    """One conversation as the model sees it.

    `response_mask[t]` means that token t is a response token; `loss_mask` says which of them are scored and trained.
    `token_classes` (see curator.render.mask) are set when they were requested. `dropped` names the parts that the
    template left out and the renderer's settings accept.
    """

    input_ids: NDArray[np.int32]  # (T,)
    response_mask: NDArray[np.bool_]  # (T,)
    token_classes: NDArray[np.int8] | None = None  # (T,)
    dropped: tuple[Part, ...] = ()

    @property
    def n_tokens(self) -> int:
        """T, all tokens."""
        return len(self.input_ids)

    @property
    def loss_mask(self) -> NDArray[np.bool_]:
        """Whether the logits at position t predict a response token, which is token t + 1; shape (T - 1,).

        A response token at position 0 has no logits before it: it is neither scored nor trained, nor counted.
        """
        return self.response_mask[1:]

    @property
    def n_response_tokens(self) -> int:
        """Tokens that are scored and trained; 0 when there is no assistant turn."""
        return int(np.count_nonzero(self.loss_mask))


class Renderer:
    """Token ids and response mask from one tokenizer and one chat template (method.md, "Words").

    Response tokens are each assistant turn's content and its closing marker. Equal to transformers'
    `apply_chat_template`, except that control tokens inside fields stay plain text, and that arguments of tool calls
    have the form (object or text) which the template writes. A conversation of which the template leaves out a part is
    refused unless `settings` accept that. Safe to share by threads.

    `careful` runs the template for every conversation and encodes every text whole. Nothing that is rendered depends
    on it; the tests hold the two ways to the same tokens and masks.
    """

    def __init__(self, files: RendererFiles, settings: RenderSettings | None = None, *, careful: bool = False) -> None:
        self._files = files
        given = settings or RenderSettings()
        self._template = ChatTemplate(files.chat_template, files.special_tokens, given.template_date)
        self.settings = RenderSettings(self._template.day, given.accept_dropped)  # the day only where it is written
        self.control_texts = tuple(_control_texts(files, self._template))  # that only the template may write
        self._guard = GuardedTokenizer(files.tokenizer, self.control_texts, by_units=not careful)
        self._spans = SpanFinder(self._template, self._guard, by_skeletons=not careful)
        skeletons = self._spans.skeletons
        self._counter = None if skeletons is None else QuickCounter(self._guard, self._spans, skeletons, self._accepts)
        self._arguments = ArgumentForms(self._template)
        self._presence = PresenceCheck(self._template, self._guard)
        self._turns = TurnCheck(self._template)
        self.tokenizer_sha256 = hashlib.sha256(canonical_bytes(files.tokenizer)).hexdigest()
        self.template_sha256 = hashlib.sha256(files.chat_template.encode()).hexdigest()
        self.renderer_id = hashlib.blake2b(
            canonical_bytes(
                [
                    RENDER_VERSION,
                    self.tokenizer_sha256,
                    self.template_sha256,
                    files.special_tokens,
                    self.settings.document(),
                ]
            ),
            digest_size=16,
        ).hexdigest()
        self.eos_id = self._named_id("eos_token")
        pad_id = self._named_id("pad_token")
        # Padding is always masked, so any id will do where a tokenizer names none.
        self.pad_id = next((i for i in (pad_id, self.eos_id) if i is not None), 0)

    @property
    def files(self) -> RendererFiles:
        """What it was made from: with `settings`, another process makes the same renderer of it."""
        return self._files

    @classmethod
    def from_folder(
        cls,
        path: str | Path,
        chat_template: str | None = None,
        *,
        settings: RenderSettings | None = None,
        careful: bool = False,
    ) -> Self:
        """From a Hugging Face model folder; `chat_template` overrides its template (Jinja source).

        Raises RenderError when tokenizer.json or the template is missing or does not load.
        """
        return cls(read_folder(Path(path), chat_template), settings, careful=careful)

    @classmethod
    def from_store(cls, store: Store, renderer_id: str) -> Self:
        """From what `save` wrote; raises MissingError, IntegrityError when the files were changed.

        Raises BadInputError for a renderer of another rendering version, whose losses are no longer comparable.
        """
        folder = _folder(renderer_id)
        record = store.read_json(f"{folder}/renderer.json")
        tokenizer = orjson.loads(store.read_bytes(f"{folder}/tokenizer.json"))
        template = store.read_bytes(f"{folder}/chat_template.jinja").decode()
        settings = RenderSettings.of_document(record.get("settings", {}))
        renderer = cls(RendererFiles(tokenizer, template, record["special_tokens"]), settings)
        if record.get("render_version") != RENDER_VERSION:
            raise BadInputError(
                f"renderer {renderer_id} belongs to rendering version {record.get('render_version')}, this is version"
                f" {RENDER_VERSION}: score the corpus again, so that scorer and trainer see the same tokens"
            )
        if renderer.renderer_id != renderer_id:
            raise IntegrityError(f"renderer {renderer_id}: its files now hash to {renderer.renderer_id}")
        return renderer

    def save(self, store: Store) -> str:
        """Write the renderer into the store unless it is there; returns its id."""
        folder = _folder(self.renderer_id)
        if not store.exists(f"{folder}/renderer.json"):
            store.write_bytes(f"{folder}/tokenizer.json", canonical_bytes(self._files.tokenizer))
            store.write_bytes(f"{folder}/chat_template.jinja", self._files.chat_template.encode())
            record = {
                "format_version": FORMAT_VERSION,
                "render_version": RENDER_VERSION,
                "renderer_id": self.renderer_id,
                "tokenizer_sha256": self.tokenizer_sha256,
                "template_sha256": self.template_sha256,
                "special_tokens": self._files.special_tokens,
                "settings": self.settings.document(),
            }
            store.write_json(f"{folder}/renderer.json", record)
        return self.renderer_id

    def render(
        self, messages: Sequence[Mapping[str, Any]], mask_rule: MaskRule = "all", *, classes: bool = False
    ) -> Rendered:
        """Ids and mask of one conversation; "last" masks in the last assistant turn alone.

        An assistant turn with `weight` 0 is context, not response. Raises RenderError (see its `reason`) when
        there are no messages, a role is unknown, a field holds a reserved character, or the template refuses or leaves
        out a part of a message.
        """
        (found,) = self.render_all([messages], mask_rule, classes=classes)
        if isinstance(found, RenderError):
            raise found
        return found

    def render_all(
        self,
        conversations: Iterable[Sequence[Mapping[str, Any]]],
        mask_rule: MaskRule = "all",
        *,
        classes: bool = False,
    ) -> list[Rendered | RenderError]:
        """What `render` gives for each conversation, or the error it raises. Some hundreds at a time go fastest.

        The arrays of the rows of one call share memory: who keeps few of many rows should copy them.
        """
        found = [self._located(messages, mask_rule, classes) for messages in conversations]
        rendered = iter(self._tokenised([item for item in found if isinstance(item, _Located)], classes))
        return [next(rendered) if isinstance(item, _Located) else item for item in found]

    def count_all(
        self, conversations: Iterable[Sequence[Mapping[str, Any]]], mask_rule: MaskRule = "all"
    ) -> list[RowTokens | RenderError]:
        """Tokens of what `render` gives for each conversation, or the error it raises; several times faster."""
        rows = list(conversations)
        counts: Sequence[RowTokens | RenderError | None] = [None] * len(rows)
        if self._counter is not None:
            quick = [row if _is_known(row) else () for row in rows]
            counts = self._counter.count(quick, [_wanted(row, mask_rule) for row in quick])
        others = iter(self.render_all([row for row, n in zip(rows, counts, strict=True) if n is None], mask_rule))
        return [_row_tokens(next(others)) if count is None else count for count in counts]

    def pieces(self, rendered: Rendered) -> list[tuple[str, bool]]:
        """A rendered conversation as text, cut where response tokens begin and end; True: response."""
        mask_T = rendered.response_mask
        edges = [0, *(np.flatnonzero(mask_T[1:] != mask_T[:-1]) + 1).tolist(), len(mask_T)]
        decode = self._decoder()
        ids = rendered.input_ids.tolist()
        return [(decode(ids[start:end]), bool(mask_T[start])) for start, end in pairwise(edges) if end > start]

    def token_texts(self, rendered: Rendered) -> list[str]:
        """The text that each token adds to those before it, (T,); joined they are the conversation's text.

        A character of several tokens stands at the last of them, the others have ''.
        """
        decode = self._decoder()
        ids: list[int] = rendered.input_ids.tolist()
        texts: list[str] = []
        start = known = 0  # a few tokens before those that are decoded: some tokenizers drop a text's first space
        for place in range(len(ids)):
            before, text = decode(ids[start:known]), decode(ids[start : place + 1])
            if text.endswith("\ufffd") and place + 1 < len(ids):
                texts.append("")  # perhaps a part of a character
                continue
            texts.append(text[len(before) :])
            start, known = known, place + 1
        return texts

    def _decoder(self) -> Callable[[list[int]], str]:
        tokenizer = tokenizers.Tokenizer.from_str(canonical_bytes(self._files.tokenizer).decode())
        return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False))

    def injected_text(self) -> str | None:
        """What the template writes of its own before a conversation without a system message; None: markers alone."""
        header, between = probe_header(self._template), probe_between(self._template)
        if between is None:
            return None
        # Both end in the mark of a user's turn.
        shared = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(header), reversed(between), strict=False))
        own = words = header[: len(header) - sum(1 for _ in shared)]
        for text in self.control_texts:
            words = words.replace(text, "")
        return own.strip() if any(character.isalpha() for character in words) else None

    def _located(
        self, messages: Sequence[Mapping[str, Any]], mask_rule: MaskRule, classes: bool
    ) -> "_Located | RenderError":
        try:
            escaped = self._escaped(messages)
            assembled = self._spans.assemble(escaped)
            dropped = self._presence.dropped(escaped, assembled)
            self._check_dropped(dropped, escaped)
            self._turns.check_order(escaped, assembled, {item.index for item in dropped})
            self._turns.check_roles(escaped)
            unwritten = {item.index for item in dropped if item.whole}  # nothing but an end marker: not trained
            wanted = [index for index in _wanted(escaped, mask_rule) if index not in unwritten]
            located = [index for index in _answers(escaped) if index not in unwritten] if classes else wanted
            spans = self._spans.locate(assembled, escaped, located)
            self._guard.check_text(assembled)
        except RenderError as error:
            return error
        parts = tuple(part for part in PARTS if any(item.part == part for item in dropped))
        return _Located(escaped, assembled, dict(zip(located, spans, strict=True)), wanted, parts)

    def _accepts(self, messages: Sequence[Mapping[str, Any]]) -> bool:
        return not isinstance(self._located(messages, "all", False), RenderError)

    def _check_dropped(self, dropped: Sequence[Dropped], messages: Sequence[Message]) -> None:
        for item in dropped:
            if item.part not in self.settings.accept_dropped:
                role = messages[item.index]["role"]
                raise RenderError(
                    f"the chat template leaves out the {item.part} of messages[{item.index}] (role {role}): use a "
                    f"model whose template writes it, or accept that it is left out (accept_dropped {item.part})",
                    reason=f"dropped_{item.part}",
                )

    def _tokenised(self, rows: Sequence["_Located"], classes: bool) -> Iterator[Rendered | RenderError]:
        if not rows:
            return
        tokens = self._guard.encode([row.assembled.text for row in rows])
        is_control_N = self._guard.is_control(tokens.ids_N)
        spans = [
            (origin + row.answers[index][0], origin + row.answers[index][1])
            for row, origin in zip(rows, tokens.origins.tolist(), strict=True)
            for index in row.wanted
        ]
        spans_S2 = np.array(spans, dtype=np.int64).reshape(-1, 2)
        mask_N = response_mask(tokens.starts_N, tokens.ends_N, is_control_N, spans_S2)
        n_controls = np.concatenate(([0], np.cumsum(is_control_N)))[tokens.bounds].tolist()
        bounds = tokens.bounds.tolist()
        for index, row in enumerate(rows):
            part = slice(bounds[index], bounds[index + 1])
            try:
                self._guard.check_controls(n_controls[index + 1] - n_controls[index], row.assembled)
                classes_T = _classes(row, tokens, index) if classes else None
            except RenderError as error:
                yield error
                continue
            yield Rendered(tokens.ids_N[part], mask_N[part], classes_T, row.dropped)

    def _escaped(self, messages: Sequence[Mapping[str, Any]]) -> list[Message]:
        if not messages:
            raise RenderError("a conversation needs at least one message, this one has none", reason="no_messages")
        for index, message in enumerate(messages):
            role = message.get("role")
            if role not in ROLES:
                raise RenderError(
                    f"messages[{index}] has role {role!r}; known roles: {', '.join(sorted(ROLES))}",
                    reason="unknown_role",
                )
        fitting = self._arguments.fit(messages)
        return [self._guard.escape_message(message, index) for index, message in enumerate(fitting)]

    def _named_id(self, name: str) -> int | None:
        text = self._files.special_tokens.get(name)
        added = self._files.tokenizer["added_tokens"]
        return next((int(item["id"]) for item in added if item["content"] == text), None)


def renderer_state(store: Store, renderer_id: str) -> tuple[bytes, ...]:
    """What another stored renderer under this id would have otherwise; raises MissingError when there is none."""
    folder = _folder(renderer_id)
    files = (f"{folder}/tokenizer.json", f"{folder}/chat_template.jinja")
    return store.read_bytes(f"{folder}/renderer.json"), *(store.file_state(path).encode() for path in files)


def _folder(renderer_id: str) -> str:
    return f"renderers/{renderer_id}"


def _control_texts(files: RendererFiles, template: ChatTemplate) -> Iterable[str]:
    """Special tokens, and the other added tokens that the template opens or closes turns with.

    Some tokenizers carry their turn markers as ordinary added tokens; those must not be forged either.
    Further ordinary added tokens (<think>, say) are parsed wherever they stand, as transformers does.
    """
    framing = "".join(probe(template) or "" for probe in (probe_user, probe_tail, probe_between))
    for item in files.tokenizer["added_tokens"]:
        if item["special"] or item["content"] in framing:
            yield item["content"]


def _answers(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    return [index for index, message in enumerate(messages) if message["role"] == "assistant"]


def _is_known(messages: Sequence[Mapping[str, Any]]) -> bool:
    """Whether each message has a known role; False without messages."""
    return bool(messages) and all(message.get("role") in ROLES for message in messages)


def _row_tokens(found: Rendered | RenderError) -> RowTokens | RenderError:
    if isinstance(found, RenderError):
        return found
    return RowTokens(found.n_tokens, found.n_response_tokens, found.dropped)


def _wanted(messages: Sequence[Mapping[str, Any]], mask_rule: MaskRule) -> list[int]:
    answers = _answers(messages)
    if mask_rule == "last":
        answers = answers[-1:]
    return [index for index in answers if messages[index].get("weight", 1) != 0]


@dataclass(frozen=True)
class _Located:
    """A conversation as text, with the spans of its assistant turns; `wanted` of them are response."""

    messages: list[Message]
    assembled: Assembled
    answers: dict[int, Span]
    wanted: list[int]
    dropped: tuple[Part, ...]


def _classes(row: _Located, tokens: Tokens, index: int) -> NDArray[np.int8]:
    part = slice(tokens.bounds[index], tokens.bounds[index + 1])
    places_T2 = np.stack([tokens.starts_N[part], tokens.ends_N[part]], axis=1) - tokens.origins[index]
    return token_classes(places_T2, row.assembled, row.messages, row.answers)
