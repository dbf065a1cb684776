"""What a chat file gives: canonical rows, and records kept out with every reason."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from curator.messages import Message

Container = Literal["jsonl", "json", "parquet", "arrow", "csv"]
Layout = Literal["messages", "sharegpt", "alpaca", "prompt_completion"]
CONTAINERS: tuple[Container, ...] = get_args(Container)
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
MAX_POINTER_CHARS, MAX_MESSAGE_CHARS = 200, 500  # keys and columns of strangers stand in both
LABELS = ("domain", "language", "license", "harm")

# Stable reason codes. The first nine are those of OpenAI's fine-tuning data check, or named like them.
CODES = {
    "data_type": "the record, a message or a turn is of another type than its layout has there",
    "missing_messages_list": "there is no list of messages, nor the fields of another layout",
    "empty_messages_list": "the list of messages is empty",
    "message_missing_key": "a message lacks its role or content",
    "unrecognized_key": "a message has a key that would be lost",
    "unrecognized_role": "a role is none of those that the layout knows",
    "missing_content": "a content is null, no text, or an empty question or assistant answer",
    "example_missing_assistant_message": "no assistant answers: there is nothing to learn",
    "invalid_weight": "a weight is neither 0 nor 1",
    "no_trained_answer": "every assistant message has weight 0: there is nothing to learn",
    "preference_pairs": "preference data (chosen and rejected answers, as for DPO or reward models)",
    "preference_labels": "preference data (an answer and whether it was good, as for KTO)",
    "invalid_tool_call": "a tool call has no function name and arguments in a form that can be kept",
    "tool_definitions": "the record defines tools, which the canonical form has no place for",
    "reasoning_content": "reasoning stands in a field of its own, which each model's template writes differently",
    "image_content": "there is an image",
    "audio_content": "there is audio",
    "video_content": "there is a video",
    "unsupported_content_part": "a content part is neither text, image, audio nor video",
    "conflicting_system": "a system field differs from the record's own system message",
    "conflicting_layouts": "the record holds two conversations in two layouts, and they say different things",
    "invalid_history": "an Alpaca history is not a list of [question, answer] texts",
    "invalid_json": "the text is not JSON",
    "truncated_json": "the file ends inside a record",
    "duplicate_key": "an object has one key twice, so that readers disagree on its value",
    "invalid_unicode": "bytes that are not UTF-8, or half of a surrogate pair",
    "invalid_label": "a label is neither text, number nor true or false",
    "record_too_large": "a record has more bytes (max_row_bytes), values or turns than are taken",
    "invalid_csv": "a CSV record has other columns than the header, or its quotes do not match",
    "invalid_parquet": "the Parquet file is damaged from here on",
    "invalid_arrow": "the Arrow file is damaged or cut off from here on",
    "invalid_compression": "the compressed file is damaged or cut off from here on",
}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a record: JSON pointer into it, stable code, what would fix it."""

    pointer: str
    code: str
    message: str

    def __post_init__(self) -> None:
        for name, most in (("pointer", MAX_POINTER_CHARS), ("message", MAX_MESSAGE_CHARS)):
            text = getattr(self, name)
            if len(text) > most:
                object.__setattr__(self, name, text[: most - 1] + "…")


@dataclass(slots=True)
class Raw:
    """One record as it stands in the file: a decoded value, or the problem that kept it from being decoded."""

    record: int
    line: int | None = None
    byte_offset: int | None = None
    value: Any = None
    problem: Problem | None = None


@dataclass(slots=True)  # not frozen: making one is on the hot path
class Row:
    """One usable record: canonical messages, the file's own id (null without one) and labels that it carries.

    `json` is the canonical JSON of the messages in UTF-8: what is stored and hashed. `source` is the record's own
    `source` label (null without one).
    """

    record: int  # 1-based
    line: int | None  # 1-based; None for formats without lines
    source_id: str | None
    messages: list[Message]
    json: bytes
    labels: Mapping[str, str | None] = field(default_factory=dict)
    source: str | None = None

    def place(self) -> str:
        """Where a person finds it: `line 7`, or the record of a file without lines."""
        return f"record {self.record}" if self.line is None else f"line {self.line}"


@dataclass(frozen=True)
class Reject:
    """One record that was kept out. `code`, `pointer` and `message` are those of its first problem.

    `byte_offset` is where decoding failed, else where the record starts; None where the format has no offsets.
    """

    record: int
    line: int | None
    byte_offset: int | None
    problems: tuple[Problem, ...]

    @property
    def pointer(self) -> str:
        """Field of the first problem."""
        return self.problems[0].pointer

    @property
    def code(self) -> str:
        """Code of the first problem: the one that counts are kept by."""
        return self.problems[0].code

    @property
    def message(self) -> str:
        """Text of the first problem."""
        return self.problems[0].message

    def place(self) -> str:
        """Where a person finds it: `line 7`, or the record and byte of a file without lines."""
        if self.line is not None:
            return f"line {self.line}"
        return f"record {self.record}" + ("" if self.byte_offset is None else f" (byte {self.byte_offset})")

    def as_dicts(self) -> list[dict[str, object]]:
        """One plain dict per problem, as the HTTP error body and the rejects table list them."""
        where = {"record": self.record, "line": self.line, "byte_offset": self.byte_offset}
        return [
            {**where, "pointer": item.pointer, "code": item.code, "message": item.message} for item in self.problems
        ]


@dataclass(frozen=True)
class Detected:
    """What a file is: how records are packed, and how a conversation is laid out in one."""

    container: Container
    layout: Layout
