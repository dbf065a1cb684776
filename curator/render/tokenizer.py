"""Control tokens that only the template can write.

A conversation is text until the tokenizer parses special tokens out of it, so a user who types one could forge
a turn. Here the tokenizer is rebuilt with the text of every control token replaced by a sentinel of Unicode
noncharacters, which no user text may hold. Control tokens in fields are escaped before the template sees them,
those that the template writes become sentinels, and the escapes turn back into plain text: whatever a field
says is then ordinary text to the tokenizer. Ids are unchanged.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray
from tokenizers import Tokenizer

from curator.errors import RenderError
from curator.messages import Message
from curator.render.marks import (
    DIGIT,
    ESCAPE,
    MARK,
    N_DIGITS,
    RESERVED,
    SENTINEL,
    Assembled,
    decode_number,
    encode_number,
    is_open,
)
from curator.render.units import (
    Tokens,
    UnitEncoder,
    Units,
    has_units,
    joined,
)

_ESCAPED = f"{ESCAPE}{DIGIT}{{{N_DIGITS}}}"


def _swap_texts(document: Mapping[str, Any], sentinels: Mapping[str, str]) -> dict[str, Any]:
    """The tokenizer document with control-token texts replaced in added tokens, vocabulary and merges."""
    model = dict(document["model"])
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {sentinels.get(piece, piece): index for piece, index in vocab.items()}
    else:
        model["vocab"] = [[sentinels.get(piece, piece), score] for piece, score in vocab]
    if isinstance(model.get("unk_token"), str):
        model["unk_token"] = sentinels.get(model["unk_token"], model["unk_token"])
    if model.get("merges"):
        # A merge that builds a control token out of ordinary pieces would let text reach its id.
        model["merges"] = [merge for merge in model["merges"] if not _touches(merge, sentinels)]
    added = [{**item, "content": sentinels.get(item["content"], item["content"])} for item in document["added_tokens"]]
    return {**document, "model": model, "added_tokens": added}


def _unknown_text(model: Mapping[str, Any]) -> str | None:
    unk_id = model.get("unk_id")  # Unigram
    text = model["vocab"][unk_id][0] if isinstance(unk_id, int) else model.get("unk_token")
    return text if isinstance(text, str) else None


def _touches(merge: Any, sentinels: Mapping[str, str]) -> bool:
    left, right = merge.split(" ", 1) if isinstance(merge, str) else merge
    return left in sentinels or right in sentinels or left + right in sentinels


class GuardedTokenizer:
    """A tokenizer whose control tokens are reached through sentinels alone."""

    def __init__(self, document: Mapping[str, Any], controls: Iterable[str], *, by_units: bool = True) -> None:
        self._texts = sorted(set(controls))
        sentinels = {text: SENTINEL + encode_number(index) for index, text in enumerate(self._texts)}
        self._sentinels = sentinels
        # Ordinary text may yield the unknown token, so it proves nothing and is never counted.
        self._unknown = _unknown_text(document["model"])
        # Longest first: the tokenizer, too, takes the longest of the tokens that begin at one place.
        longest_first = sorted(self._texts, key=len, reverse=True)
        alternatives = "|".join(re.escape(text) for text in longest_first) or "(?!)"
        self._controls = re.compile(alternatives)
        self._items = re.compile("|".join((MARK.pattern, _ESCAPED, alternatives)), re.DOTALL)
        try:
            guarded = _swap_texts(document, sentinels)
            self._tokenizer = Tokenizer.from_str(orjson.dumps(guarded).decode())
        except Exception as error:  # the tokenizers library raises bare Exception
            raise RenderError(f"the tokenizer does not load: {error}", reason="bad_tokenizer") from error
        self._units = UnitEncoder(self._tokenizer, guarded) if by_units and has_units(guarded) else None
        self._is_control = self._control_table(document)

    def _control_table(self, document: Mapping[str, Any]) -> NDArray[np.bool_]:
        ids = {item["content"]: int(item["id"]) for item in document["added_tokens"]}
        for text, sentinel in self._sentinels.items():
            if self._tokenizer.token_to_id(sentinel) != ids[text]:
                raise RenderError(
                    f"special token {text!r} has id {ids[text]} in tokenizer.json but loads as "
                    f"{self._tokenizer.token_to_id(sentinel)}",
                    reason="bad_tokenizer",
                )
        table = np.zeros(max(self._tokenizer.get_vocab_size(), *ids.values(), 0) + 1, dtype=np.bool_)
        table[[ids[text] for text in self._texts if text != self._unknown]] = True
        return table

    def escape(self, value: Any, where: str) -> Any:
        """The value with control-token texts made unreadable to the template, in every string inside it.

        Raises RenderError when a string holds one of the noncharacters that this renderer reserves.
        """
        if isinstance(value, str):
            if not value.isascii() and (found := RESERVED.search(value)):
                raise RenderError(
                    f"{where} holds the reserved noncharacter U+{ord(found[0]):04X} at character {found.start()}",
                    reason="reserved_characters",
                )
            return self._controls.sub(self._escaped, value)
        if isinstance(value, Mapping):
            return {self.escape(key, where): self.escape(item, where) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self.escape(item, where) for item in value]
        return value

    def is_plain(self, text: str) -> bool:
        """Whether `escape` gives the text itself: it holds no control token's text and no reserved character."""
        return (text.isascii() or not RESERVED.search(text)) and not self._controls.search(text)

    def escape_message(self, message: Mapping[str, Any], index: int) -> Message:
        """The message with every field but its role escaped (roles come from a closed list)."""
        return {
            key: value if key == "role" else self.escape(value, f"messages[{index}].{key}")
            for key, value in message.items()
        }

    def _escaped(self, found: re.Match[str]) -> str:
        return ESCAPE + self._sentinels[found[0]][1:]

    def assemble(self, rendered: str) -> Assembled:
        """Template output with its own control tokens as sentinels, escapes as plain text, marks taken out."""
        pieces: list[str] = []
        result = Assembled("", 0)
        length = done = 0
        for found in self._items.finditer(rendered):
            before, item = rendered[done : found.start()], found[0]
            length += len(before)
            done = found.end()
            if MARK.match(item):
                places = result.opens if is_open(item) else result.closes
                places.setdefault(decode_number(item[1:]), []).append(length)
                item = ""
            elif item[0] == ESCAPE:
                item = self._texts[decode_number(item[1:])]
            else:
                result.n_controls += item != self._unknown
                item = self._sentinels[item]
            pieces += (before, item)
            length += len(item)
        result.text = "".join((*pieces, rendered[done:]))
        if ESCAPE in result.text:
            raise RenderError(
                "the chat template takes the text of a control token in a field apart", reason="template_refused"
            )
        return result

    def first_control_end(self, assembled_text: str) -> int:
        """Characters up to and including the first sentinel; 0 when there is none."""
        at = assembled_text.find(SENTINEL)
        return 0 if at < 0 else at + 1 + N_DIGITS

    def control_texts_in(self, assembled_text: str) -> list[str]:
        """The sentinels in assembled text, in order."""
        return re.findall(f"{SENTINEL}.{{{N_DIGITS}}}", assembled_text, re.DOTALL)

    def encode(self, texts: Sequence[str]) -> Tokens:
        """The tokens of assembled texts, by units where the tokenizer has them, else text by text."""
        found = self._units.encode(texts) if self._units else None
        return found or self.encode_whole(texts)

    def encode_whole(self, texts: Sequence[str]) -> Tokens:
        """The tokens of assembled texts, each encoded as one."""
        return joined([self._tokenizer.encode(text, add_special_tokens=False) for text in texts], texts)

    def units(self, data: bytes, row_starts: NDArray[np.int64]) -> Units | None:
        """The units of assembled texts in UTF-8 (see `UnitEncoder`); None where there are none for these."""
        return self._units.units(data, row_starts) if self._units else None

    def is_control(self, ids: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Which ids are control tokens that the template wrote (ordinary text yields none)."""
        return self._is_control[ids]

    @staticmethod
    def check_text(assembled: Assembled) -> None:
        """RenderError unless the text can be encoded: JSON may hold half of a surrogate pair."""
        try:
            assembled.text.encode()
        except UnicodeError as error:
            raise RenderError(f"the text is not valid Unicode: {error}", reason="bad_text") from error

    @staticmethod
    def check_controls(n_found: int, assembled: Assembled) -> None:
        """RenderError unless the ids hold as many control tokens as the template wrote."""
        if n_found != assembled.n_controls:
            raise RenderError(
                f"the template wrote {assembled.n_controls} control tokens but the ids hold {n_found}",
                reason="bad_tokenizer",
            )
