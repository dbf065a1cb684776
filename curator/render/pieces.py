"""ASCII text to token ids, piece by piece: what a byte-level BPE tokenizer encodes without looking around it.

The tokenizer's own search for pieces takes most of its time. Over ASCII text its rules mean the same to Python's
regular expressions, and most pieces were met before. Everything else is left to the tokenizer.
"""

import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer

# The rule of `ByteLevel`, GPT-2's.
BYTE_LEVEL_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_TOKEN = struct.Struct("3i")
MAX_PIECES = 1 << 16  # kept, about 200 bytes each; then all are forgotten
LONGEST_KEPT = 48  # characters: longer ones hardly come again, and a stranger's may have millions
_ASCII = {
    r"\p{L}": "A-Za-z",
    r"\p{N}": "0-9",
    r"\p{M}": "",
    r"\s": r" \t\n\x0b\x0c\r",
    r"\S": r"!-~\x00-\x08\x0e-\x1f\x7f",
}
_CLASS = re.compile(r"\[[^\]]*\]|\\p\{[LNM]\}|\\[sS]")
_NAME = re.compile(r"\\p\{[LNM]\}|\\[sS]")
# What byte-level tokenizers write for a byte: itself where it can be seen, else a character from U+0100 on.
_BYTES = {byte: 0x100 + byte for byte in range(0x21)} | {0x7F: 0x121}


def _for_ascii(rule: str) -> re.Pattern[str]:
    """A splitting rule as a pattern that finds the same pieces in ASCII text."""

    def written(found: re.Match[str]) -> str:
        inside = _NAME.sub(lambda name: _ASCII[name[0]], found[0])
        return inside if found[0][0] == "[" else f"[{inside}]"

    return re.compile(_CLASS.sub(written, rule))


def _stages(pre_tokenizer: Mapping[str, Any]) -> list[re.Pattern[str]]:
    """The patterns that split text one after another, for a pre-tokenizer that `units.has_units` knows."""
    rules = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    found = []
    for rule in rules:
        if rule["type"] == "Digits":
            found.append(re.compile("[0-9]|[^0-9]+" if rule["individual_digits"] else "[0-9]+|[^0-9]+"))
        elif rule["type"] == "Split":
            found.append(_for_ascii(rule["pattern"]["Regex"]))
        elif rule["use_regex"]:
            found.append(_for_ascii(BYTE_LEVEL_SPLIT))
    return found


class PieceEncoder:
    """Encodes ASCII texts for a tokenizer whose document has units (`units.has_units`). Safe to share by threads."""

    def __init__(self, tokenizer: Tokenizer, document: Mapping[str, Any]) -> None:
        self._model = tokenizer.model
        self._stages = _stages(document["pre_tokenizer"])
        # Added tokens are found before anything is split: texts that could hold one are not for this way.
        starters = {item["content"][:1] for item in document["added_tokens"]}
        others = "".join(re.escape(char) for char in map(chr, range(128)) if char not in starters)
        self._fitting = re.compile(f"[{others}]+") if others else re.compile("(?!)")
        unknown = document["model"].get("unk_token")
        self._unknown = tokenizer.token_to_id(unknown) if unknown is not None else None
        self._kept: dict[str, bytes | None] = {}

    def encode(self, texts: Sequence[str]) -> dict[str, bytes]:
        """Three numbers a token as `units` packs them, by text; a text that is not for this way is left out."""
        found, kept = {}, self._kept  # another thread may put a new one in its place
        for text in filter(self._fitting.fullmatch, texts):
            pieces = [text]
            for stage in self._stages:
                pieces = [piece for longer in pieces for piece in stage.findall(longer)]
            packed = [kept[piece] if piece in kept else self._encode(piece) for piece in pieces]
            if None not in packed:
                found[text] = b"".join(packed)  # type: ignore[arg-type]
        return found

    def _encode(self, piece: str) -> bytes | None:
        """None where a character has no token of its own."""
        tokens = self._model.tokenize(piece.translate(_BYTES))
        numbers = [(token.id, length := len(token.value), length) for token in tokens]  # one character a byte
        whole = sum(length for _, length, _ in numbers) == len(piece) and all(
            item[0] != self._unknown for item in numbers
        )
        packed = b"".join(_TOKEN.pack(*item) for item in numbers) if whole else None
        if len(piece) <= LONGEST_KEPT:
            if len(self._kept) >= MAX_PIECES:
                self._kept = {}
            self._kept[piece] = packed
        return packed
