"""Text to token ids, unit by unit, with each unit's tokens kept: for tokenizers that never join what is cut here.

Text is cut into units where a space (U+0020) follows what is not white space, where an ASCII character that is neither
letter nor digit follows an ASCII letter or digit, and around control tokens. Byte-level BPE tokenizers split their text
by rules under which no piece goes on over such a place, and encode the pieces independently of each other. So the
tokens of a text are those of its units one after another. Which tokenizers are of this kind is read from their
document; all others encode whole texts.
"""

import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from curator.render.marks import SENTINEL, encode_number
from curator.render.pieces import BYTE_LEVEL_SPLIT, LONGEST_KEPT, PieceEncoder

MAX_UNITS = 1 << 18  # kept, about 220 bytes each; then all are forgotten, and the frequent ones soon back

_ALNUM = "A-Za-z0-9"
_NO_TOKEN = -2  # in the place of an id
_PACKED_BYTES = 12  # of a token
_NO_TOKEN_PACKED = array("i", (_NO_TOKEN, 0, 0)).tobytes()
_SENTINEL_BYTES, _DIGIT_BYTES = SENTINEL.encode(), len(encode_number(0).encode())
_SENTINELS = re.compile(_SENTINEL_BYTES)
_SPACE_AFTER_TEXT = re.compile(r"\S ")
_END_OF_WORD = re.compile(rf"[{_ALNUM}](?=[\x00-\x7f])[^{_ALNUM}]")
# Bytes by what may stand on the two sides of a cut: where both share a bit there is one.
_WORD_ENDS, _TEXT_ENDS = 1, 2


def _byte_table(is_word_side: Callable[[str], bool], is_text_side: Callable[[str], bool], others: int) -> bytes:
    ascii_part = [_WORD_ENDS * is_word_side(char) + _TEXT_ENDS * is_text_side(char) for char in map(chr, range(128))]
    return bytes([*ascii_part, *[others] * 128])


_BEFORE = _byte_table(str.isalnum, lambda char: not char.isspace(), _TEXT_ENDS)
_AFTER = _byte_table(lambda char: not char.isalnum(), lambda char: char == " ", 0)
# White space of several bytes, by its last three: a space after it is no cut.
_WIDE_SPACES = np.array(
    [int.from_bytes(char.encode()[-3:]) for char in map(chr, range(128, 0x10000)) if char.isspace()], np.int64
)
# Units that may be encoded as one text, for there is a cut between any two of them.
_JOINABLE = re.compile(rf"(?=[\x00-\x7f])[^{_ALNUM}].*[{_ALNUM}]", re.DOTALL)

# No alternative of these rules matches on over a cut; none looks behind, nor ahead beyond the white space that it
# matches and the character after it. So the pieces of a unit are its own.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_SPLITS = frozenset(
    {
        BYTE_LEVEL_SPLIT,
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


@dataclass(frozen=True)
class Units:
    """UTF-8 text cut into units: `cuts` are the bytes where they begin, and the text's length.

    Unit p is `texts[codes_P[p]]`, and `packed` has its tokens. No text stands twice in `texts`.
    """

    cuts: NDArray[np.int64]  # (P + 1,)
    codes_P: NDArray[np.int64]
    texts: list[bytes]
    packed: list[bytes]

    def table(self) -> NDArray[np.int32]:
        """The tokens of all texts, (M, 3), three numbers each (see `UnitEncoder`)."""
        return np.frombuffer(b"".join(self.packed), np.int32).reshape(-1, 3)

    def counts(self) -> NDArray[np.int64]:
        """Tokens of each text, (U,)."""
        return np.fromiter(map(len, self.packed), np.int64, len(self.packed)) // _PACKED_BYTES

    def tokens_until(self, place: int, n_bytes: int) -> int:
        """How many tokens of unit `place` end within its first bytes, which end with a character."""
        code = self.codes_P[place]
        n_chars = len(self.texts[code][:n_bytes].decode())
        ends = np.cumsum(np.frombuffer(self.packed[code], np.int32).reshape(-1, 3)[:, 1])
        return int(np.searchsorted(ends, n_chars, side="right"))


def places(encoding: Encoding) -> NDArray[np.int64]:
    """First character and one past the last of each token, (T, 2)."""
    flat = chain.from_iterable(encoding.offsets)  # half the time of np.array on the list of pairs
    return np.fromiter(flat, np.int64, 2 * len(encoding.ids)).reshape(-1, 2)


def joined(encodings: Sequence[Encoding], texts: Sequence[str]) -> Tokens:
    """The tokens of texts that were encoded one by one."""
    counts = [len(encoding.ids) for encoding in encodings]
    bounds = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
    origins = np.cumsum([0, *map(len, texts)], dtype=np.int64)[:-1]
    ids = chain.from_iterable(encoding.ids for encoding in encodings)
    places_N2 = np.concatenate([places(encoding) for encoding in encodings]) + np.repeat(origins, counts)[:, None]
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
        and not any(re.match(rf"[\s{_ALNUM}]", text) for text in _broken_tokens(document))
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
    """Whether an added token takes in what stands around it, or has a space after text."""
    flags = ("lstrip", "rstrip", "single_word")
    return any(added_token[flag] for flag in flags) or _SPACE_AFTER_TEXT.search(added_token["content"]) is not None


def _broken_tokens(document: Mapping[str, Any]) -> list[str]:
    """Added tokens that would be cut after a word inside them (<think>, say)."""
    return [item["content"] for item in document["added_tokens"] if _END_OF_WORD.search(item["content"])]


def _cuts(data: bytes, row_starts: NDArray[np.int64], broken: Sequence[bytes]) -> NDArray[np.int64]:
    """Where units begin in UTF-8 text, and its length; rows begin one each, and no `broken` token is cut inside."""
    if not data:
        return np.zeros(1, dtype=np.int64)
    before_N, after_N = (np.frombuffer(data.translate(table), np.uint8) for table in (_BEFORE, _AFTER))
    is_cut_N = np.zeros(len(data) + 1, dtype=np.bool_)
    np.not_equal(before_N[:-1] & after_N[1:], 0, out=is_cut_N[1:-1])
    if not data.isascii():
        is_cut_N[_spaces_after_wide_ones(np.frombuffer(data, np.uint8))] = False
        controls = np.array([found.start() for found in _SENTINELS.finditer(data)], np.int64)
        is_cut_N[controls] = True
        is_cut_N[controls + len(_SENTINEL_BYTES) + _DIGIT_BYTES] = True
    for token in broken:
        for at in _places_of(token, data):
            is_cut_N[at + 1 : at + len(token)] = False
    is_cut_N[row_starts] = True
    is_cut_N[[0, -1]] = True
    return np.flatnonzero(is_cut_N)


def _spaces_after_wide_ones(data_N: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Places of spaces that follow white space of several bytes."""
    spaces = np.flatnonzero((data_N[1:] == ord(" ")) & (data_N[:-1] > 127)) + 1
    last, second, third = (data_N[np.maximum(spaces - back, 0)].astype(np.int64) for back in (1, 2, 3))
    of_two = second >= 0xC0  # the character has two bytes
    codes = np.where(of_two, 0, third << 16) + (second << 8) + last
    return spaces[np.isin(codes, _WIDE_SPACES)]


def _places_of(wanted: bytes, data: bytes) -> Iterator[int]:
    at = data.find(wanted)
    while at >= 0:
        yield at
        at = data.find(wanted, at + 1)


class UnitEncoder:
    """Encodes texts by their units, for a tokenizer whose document `has_units`. Safe to share by threads."""

    def __init__(self, tokenizer: Tokenizer, document: Mapping[str, Any]) -> None:
        broken = _broken_tokens(document)
        self._tokenizer = tokenizer
        self._broken = [text.encode() for text in broken]
        self._starters = {text[0] for text in broken}
        self._pieces = PieceEncoder(tokenizer, document)
        self._kept: dict[bytes, bytes] = {}

    def units(self, data: bytes, row_starts: NDArray[np.int64]) -> Units | None:
        """The units of UTF-8 texts put together, of which one begins at each of `row_starts`.

        None where one has characters without a token, whose places units do not keep. What is packed has three numbers
        a token: id, characters from the last token's end to its own, and its length.
        """
        cuts = _cuts(data, row_starts, self._broken)
        units = pa.LargeBinaryArray.from_buffers(
            pa.large_binary(), len(cuts) - 1, [None, pa.py_buffer(cuts), pa.py_buffer(data)]
        ).dictionary_encode()
        texts = units.dictionary.to_pylist()
        packed = self._packed(texts)
        if _NO_TOKEN_PACKED in packed:
            return None
        return Units(cuts, units.indices.to_numpy(), texts, packed)

    def encode(self, texts: Sequence[str]) -> Tokens | None:
        """The tokens of the texts; None where one has characters without a token, whose places units do not keep.

        Raises UnicodeError for text that is not valid Unicode.
        """
        encoded = [text.encode() for text in texts]
        data = b"".join(encoded)
        row_starts = np.cumsum([0, *map(len, encoded)])
        units = self.units(data, row_starts)
        if units is None:
            return None
        table_M3, counts_U, places_P = units.table(), units.counts(), units.codes_P
        starts_U = np.cumsum(counts_U) - counts_U
        counts_P = counts_U[places_P]
        after_P = np.concatenate(([0], np.cumsum(counts_P)))
        # Token t of a unit's occurrence is token t of the unit in the table.
        found_N3 = table_M3[np.arange(after_P[-1]) + np.repeat(starts_U[places_P] - after_P[:-1], counts_P)]
        ends_N = np.cumsum(found_N3[:, 1], dtype=np.int64)
        bounds = after_P[np.searchsorted(units.cuts, row_starts)]
        origins = np.cumsum([0, *map(len, texts)], dtype=np.int64)[:-1]
        return Tokens(found_N3[:, 0].copy(), ends_N - found_N3[:, 2], ends_N, bounds, origins)

    def _packed(self, units: Sequence[bytes]) -> list[bytes]:
        """The packed tokens of each unit, or _NO_TOKEN_PACKED."""
        found = list(map(self._kept.get, units))
        places = [place for place, item in enumerate(found) if item is None] if None in found else []
        if places:
            missing = [units[place] for place in places]
            new = self._encode_new([unit.decode() for unit in missing])
            if len(self._kept) + len(new) > MAX_UNITS:
                self._kept = {}  # another thread may read the old one
            for place, unit, packed in zip(places, missing, new, strict=True):
                found[place] = packed
                if len(unit) <= LONGEST_KEPT:  # in bytes here
                    self._kept[unit] = packed
        return cast(list[bytes], found)

    def _encode_new(self, units: Sequence[str]) -> list[bytes]:
        """By pieces; most of the others as one text: a text costs as much as five tokens."""
        found = self._pieces.encode(units)
        joinable = [
            unit
            for unit in units
            if unit not in found and _JOINABLE.fullmatch(unit) and self._starters.isdisjoint(unit)
        ]
        packed = self._encode_joined(joinable) if len(joinable) > 1 else None
        found |= {} if packed is None else dict(zip(joinable, packed, strict=True))
        others = [unit for unit in units if unit not in found]
        encodings = self._tokenizer.encode_batch(others, add_special_tokens=False)
        found |= {unit: _pack(unit, encoding) for unit, encoding in zip(others, encodings, strict=True)}
        return [found[unit] for unit in units]

    def _encode_joined(self, units: Sequence[str]) -> list[bytes] | None:
        """None unless a token ends at the end of every unit, as it does when every character has one."""
        encoding = self._tokenizer.encode("".join(units), add_special_tokens=False)
        ids_N = np.array(encoding.ids, dtype=np.int32)
        starts_N, ends_N = places(encoding).T
        cuts_U = np.cumsum([len(unit) for unit in units])
        after_U = np.searchsorted(ends_N, cuts_U, side="right")
        if len(ids_N) == 0 or after_U[0] == 0 or not np.array_equal(ends_N[after_U - 1], cuts_U):
            return None
        packed_N3 = np.stack([ids_N, np.diff(ends_N, prepend=0), ends_N - starts_N], axis=1).astype(np.int32)
        parts, bounds = packed_N3.tobytes(), [0, *(after_U * _PACKED_BYTES).tolist()]
        return [parts[start:end] for start, end in pairwise(bounds)]


def _pack(unit: str, encoding: Encoding) -> bytes:
    numbers, at = array("i"), 0
    for token_id, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
        numbers.extend((token_id, end - at, end - start))
        at = end
    return numbers.tobytes() if at == len(unit) else _NO_TOKEN_PACKED
