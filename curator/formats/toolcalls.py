"""Tool calls of an assistant message in one form: `{"type": "function", "id"?, "function": {"name", "arguments"}}`.

Read are OpenAI's `tool_calls`, its older `function_call`, calls without the `function` wrapper, and ShareGPT's
`function_call` turns (JSON text). Arguments stay what they are: an object, or text.
"""

from collections.abc import Iterator
from typing import Any

from curator.formats.decode import UndecodableError, decode
from curator.formats.rows import Problem
from curator.formats.values import encodable, json_fault, kind

CODE = "invalid_tool_call"
CALL_KEYS = ("tool_calls", "function_call")


def read_tool_calls(turn: dict[str, Any], pointer: str, problems: list[Problem]) -> list[dict[str, Any]]:
    """The calls of one message (its `tool_calls`, else its `function_call`); [] without any."""
    if turn.get("tool_calls") and turn.get("function_call"):
        problems.append(Problem(f"{pointer}/function_call", CODE, "tool_calls and function_call at once: keep one"))
        return []
    if turn.get("function_call"):
        return list(_call(turn["function_call"], f"{pointer}/function_call", problems))
    calls = turn.get("tool_calls") or []
    if not isinstance(calls, list):
        problems.append(Problem(f"{pointer}/tool_calls", CODE, f"expected a list, found {kind(calls)}"))
        return []
    at = f"{pointer}/tool_calls"
    return [kept for index, call in enumerate(calls) for kept in _call(call, f"{at}/{index}", problems)]


def calls_from_text(text: Any, at: str, problems: list[Problem]) -> list[dict[str, Any]]:
    """The calls of a ShareGPT `function_call` turn: one `{"name", "arguments"}` as JSON text, or a list of them."""
    try:
        value = decode(text.encode(), 0) if isinstance(text, str) and encodable(text) else text
    except UndecodableError as error:
        problems.append(Problem(at, CODE, f"a function_call turn is JSON text: {error.problem.message}"))
        return []
    calls = value if isinstance(value, list) else [value]
    return [kept for call in calls for kept in _call(call, at, problems)]


def _call(call: Any, at: str, problems: list[Problem]) -> Iterator[dict[str, Any]]:
    """The call in its one form, or nothing and a problem."""
    found = _fault(call)
    if found is not None:
        problems.append(Problem(at, CODE, found))
        return
    function = call.get("function") or call
    kept = {"type": "function", "function": {"name": function["name"], "arguments": function["arguments"]}}
    if call.get("id"):
        kept["id"] = call["id"]
    yield kept


def _fault(call: Any) -> str | None:
    if not isinstance(call, dict):
        return f"a tool call is an object, not {kind(call)}"
    if call.get("type") not in (None, "function"):
        return f"a tool call of type {ascii(call['type'])[:40]}: only functions can be kept"
    function = call.get("function") or call
    if not isinstance(function, dict):
        return f"function is an object, not {kind(function)}"
    outer = {"id", "type", "index", *(("function",) if function is not call else ("name", "arguments"))}
    extra = [key for key in call if key not in outer and call[key] is not None]
    if function is not call:
        extra += [key for key in function if key not in ("name", "arguments") and function[key] is not None]
    if extra:
        return f"{ascii(extra[0])[:40]} of a tool call would be lost: remove it"
    if not isinstance(function.get("name"), str) or not function["name"]:
        return "the function has no name"
    if not isinstance(function.get("arguments"), str | dict):
        return f"arguments are text or an object, not {kind(function.get('arguments'))}"
    if call.get("id") is not None and not isinstance(call["id"], str):
        return f"a tool call's id is text, not {kind(call['id'])}"
    return json_fault([call.get("id"), function["name"], function["arguments"]])
