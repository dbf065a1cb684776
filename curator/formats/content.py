"""A message's content: one text, or parts that are all text and are joined as they stand."""

from typing import Any

from curator.formats.rows import Problem
from curator.formats.values import encodable, is_empty, kind

# Types of content parts, and names of record fields that hold media, by the code that refuses them.
_MEDIA = {
    "image_content": ("image", "image_url", "input_image", "images", "image_urls"),
    "audio_content": ("audio", "audio_url", "input_audio", "audios", "speech"),
    "video_content": ("video", "video_url", "input_video", "videos"),
}
_CODE_OF = {name: code for code, names in _MEDIA.items() for name in names}
MEDIA_FIELDS = frozenset(_CODE_OF)
_SURROGATE = "half of a surrogate pair: not a character"


def media_problems(fields: dict[str, Any], pointer: str) -> list[Problem]:
    """A problem for each field of a record or message that holds images, audio or video."""
    found = [name for name in fields if name in MEDIA_FIELDS and not is_empty(fields[name])]
    return [
        Problem(f"{pointer}/{name}", _CODE_OF[name], f"{_CODE_OF[name][:5]} data cannot be kept: only text is")
        for name in found
    ]


def read_content(content: Any, at: str, problems: list[Problem]) -> str:
    """The text of a content, "" with a problem when it is none; parts are joined with nothing between them."""
    if isinstance(content, str):
        if not encodable(content):
            problems.append(Problem(at, "invalid_unicode", _SURROGATE))
        return content
    if isinstance(content, list):
        return "".join(_part(part, f"{at}/{index}", problems) for index, part in enumerate(content))
    problems.append(Problem(at, "missing_content", f"expected text, found {kind(content)}"))
    return ""


def _part(part: Any, at: str, problems: list[Problem]) -> str:
    if isinstance(part, str):
        return read_content(part, at, problems)
    if not isinstance(part, dict):
        problems.append(Problem(at, "data_type", f"a content part is an object, not {kind(part)}"))
        return ""
    name = part.get("type")
    code = _CODE_OF.get(name) if isinstance(name, str) else None
    if code is not None or name != "text":
        text = f"a part of type {ascii(name)[:40]} cannot be kept: only text parts are"
        problems.append(Problem(at, code or "unsupported_content_part", text))
        return ""
    for key, value in part.items():
        if key not in ("type", "text") and value is not None:
            problems.append(Problem(at, "unrecognized_key", f"{ascii(key)[:40]} of a content part would be lost"))
    return read_content(part.get("text"), f"{at}/text", problems)
