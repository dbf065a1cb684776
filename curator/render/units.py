"""Text to token ids, unit by unit, with each unit's tokens kept: for tokenizers that never join what is cut here.

A unit is white space and the text after it, up to the next space (U+0020) that follows other text; control tokens
stand alone. Byte-level BPE tokenizers split their text by rules under which no piece goes on from a character that is
no white space to a space, and encode the pieces independently of each other. So the tokens of a text are those of its
units one after another. Which tokenizers are of this kind is read from their document; all others encode whole texts.
"""

import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from curator.render.marks import N_DIGITS, ROW, SENTINEL

MAX_UNITS = 1 << 17  # kept, about 250 bytes each; then all are forgotten, and the frequent ones soon back
_LONGEST = 40  # characters of a unit that is kept: longer ones hardly come again

# [^\S ] is white space but U+0020. What Python takes for white space and the tokenizer does not makes units longer.
_TEXT = rf"[^\s{SENTINEL}{ROW}]"
_UNIT = re.compile(rf"{ROW}|{SENTINEL}.{{{N_DIGITS}}}|\s*{_TEXT}+(?:[^\S ]\s*{_TEXT}*)*|\s+", re.DOTALL)
_ROW_START, _NO_TOKEN = -1, -2  # in the place of an id
_ROW_PACKED = array("i", (_ROW_START, 1, 1)).tobytes()
_NO_TOKEN_PACKED = array("i", (_NO_TOKEN, 0, 0)).tobytes()
_BREAKS_UNITS = re.compile(r"\S ")

# No alternative of these rules matches a character that is no white space and then a space; none looks behind, nor
# ahead beyond the white space that it matches and the character after it. So the pieces of a unit are its own.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = frozenset(
    {
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",  # GPT-2
        # Llama-3
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_SPACES}",
        # Qwen-2, Qwen-3
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*{_SPACES}",
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"  # Qwen-3.5
        rf"| ?[^\s\p{{L}}\p{{M}}\p{{N}}]+[\r\n]*{_SPACES}",
    }
)


@dataclass(frozen=True)
class Tokens:
    """The tokens of some texts, one after another. Places are characters of the texts put together.

    `bounds` are R + 1 indices of tokens: text r has those from bounds[r] on and before bounds[r + 1]. `origins` says
    where each text begins.
    """

    ids_N: NDArray[np.int32]
    starts_N: NDArray[np.int64]
    ends_N: NDArray[np.int64]
    bounds: NDArray[np.int64]  # (R + 1,)
    origins: NDArray[np.int64]  # (R,)


def joined(encodings: Sequence[Encoding], texts: Sequence[str]) -> Tokens:
    """The tokens of texts that were encoded one by one."""
    counts = [len(encoding.ids) for encoding in encodings]
    bounds = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
    origins = np.cumsum([0, *map(len, texts)], dtype=np.int64)[:-1]
    ids = chain.from_iterable(encoding.ids for encoding in encodings)
    flat = chain.from_iterable(chain.from_iterable(encoding.offsets) for encoding in encodings)
    places_N2 = np.fromiter(flat, np.int64, 2 * int(bounds[-1])).reshape(-1, 2)  # half the time of np.array on pairs
    places_N2 += np.repeat(origins, counts)[:, None]
    return Tokens(np.fromiter(ids, np.int32, int(bounds[-1])), places_N2[:, 0], places_N2[:, 1], bounds, origins)


def has_units(document: Mapping[str, Any]) -> bool:
    """Whether a tokenizer's document is of a kind that encodes units independently of each other."""
    model, normalizer = document["model"], document.get("normalizer")
    return (
        model.get("type") == "BPE"
        and not any(model.get(key) for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        # No composition and no reordering reaches across a space.
        and (normalizer is None or normalizer.get("type") == "NFC")
        and _splits_at_spaces(document.get("pre_tokenizer"))
        and not any(document.get(key) for key in ("truncation", "padding", "post_processor"))
        and not any(_joins_units(item) for item in document["added_tokens"])
    )


def _splits_at_spaces(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    """Whether every piece that it makes lies within a unit, with nothing added; bytes come last."""
    if pre_tokenizer is None:
        return False
    *rules, last = pre_tokenizer["pretokenizers"] if pre_tokenizer["type"] == "Sequence" else [pre_tokenizer]
    if last["type"] != "ByteLevel" or last["add_prefix_space"]:
        return False
    known = [_is_known_split(rule) for rule in rules if rule["type"] != "Digits"]
    return all(known) and (bool(known) or last["use_regex"])


def _is_known_split(rule: Mapping[str, Any]) -> bool:
    if rule["type"] != "Split" or rule["behavior"] != "Isolated" or rule["invert"]:
        return False
    return rule["pattern"].get("Regex") in _SPLITS


def _joins_units(added_token: Mapping[str, Any]) -> bool:
    """Whether an added token takes in what stands around it, or reaches over the end of a unit."""
    flags = ("lstrip", "rstrip", "single_word")
    return any(added_token[flag] for flag in flags) or _BREAKS_UNITS.search(added_token["content"]) is not None


class UnitEncoder:
    """Encodes texts by their units. Safe to share by threads."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._kept: dict[str, bytes] = {}

    def encode(self, texts: Sequence[str]) -> Tokens | None:
        """The tokens of the texts; None where one has characters without a token, whose places units do not keep.

        Raises what the tokenizer raises on text that is no valid Unicode.
        """
        units = _UNIT.findall("".join([ROW + text for text in texts]))
        packed_N3 = np.frombuffer(b"".join(map(self._packed(set(units)).__getitem__, units)), np.int32).reshape(-1, 3)
        ids_N = packed_N3[:, 0]
        if ids_N.min(initial=0) == _NO_TOKEN:
            return None
        ends_N = np.cumsum(packed_N3[:, 1], dtype=np.int64)
        starts_N = ends_N - packed_N3[:, 2]
        rows_R = np.flatnonzero(ids_N == _ROW_START)
        is_token_N = ids_N != _ROW_START
        bounds = np.append(rows_R, len(ids_N)) - np.arange(len(rows_R) + 1)
        return Tokens(ids_N[is_token_N], starts_N[is_token_N], ends_N[is_token_N], bounds, ends_N[rows_R])

    def _packed(self, units: set[str]) -> dict[str, bytes]:
        """For each unit three numbers a token: id, characters from the last token's end to its own, and its length."""
        found = {ROW: _ROW_PACKED}
        found |= {unit: packed for unit in units if (packed := self._kept.get(unit)) is not None}
        new = {unit: self._encode(unit) for unit in units if unit not in found}
        if len(self._kept) + len(new) > MAX_UNITS:
            self._kept.clear()
        self._kept.update((unit, packed) for unit, packed in new.items() if len(unit) <= _LONGEST)
        return found | new

    def _encode(self, unit: str) -> bytes:
        encoding = self._tokenizer.encode(unit, add_special_tokens=False)
        numbers, at = array("i"), 0
        for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            numbers.extend((token_id, end - at, end - start))
            at = end
        return numbers.tobytes() if at == len(unit) else _NO_TOKEN_PACKED
