"""A recipe from the mix builder's form, and the same request as a command, with curl and in Python."""

import json
import pprint
import shlex
from collections.abc import Mapping
from typing import Any

from api.errors import ApiError
from curator.recipe.filters import RefusalFilter, default_filters
from curator.recipe.inoculation import DEFAULT_PROMPTS

# The form's fields beside the file, and whether one may come several times.
FIELDS: Mapping[str, bool] = {
    "form_token": False,
    "corpus": False,
    "strategy": False,
    "score": False,
    "ratio": False,
    "refusals": False,
    "refusal_share": False,
    "hold_out": True,
    "order": False,
    "batch_size": False,
    "epochs": False,
    "inoculation": False,
    "prompt": False,
    "seed": False,
}
STRATEGIES = {
    "top_gap": "largest gap first",
    "quantile_band": "large gaps, without the top 1 %",
    "weighted": "at random, larger gaps likelier",
    "diverse": "largest gap first, without look-alikes",
    "coverage": "large gaps, spread over unlike prompts",
    "domain_matched": "nearest to your prompts in words",
    "random": "at random",
}
ORDERS = {
    "even": "spread evenly",
    "every_k": "after every k task rows",
    "per_batch": "so many in each batch",
    "shuffle": "shuffled",
}
REFUSALS = {"drop": "leave them out", "cap": "at most a share", "keep": "keep them"}
INOCULATIONS: dict[str, str] = {"": "none"}
INOCULATIONS |= {str(kind): f"{kind}: “{text}”" for kind, text in DEFAULT_PROMPTS.items()}


def recipe_of(fields: Mapping[str, str]) -> dict[str, Any]:
    """The recipe that a form asks for, as short as it can be said; what is left out takes its default.

    Raises ApiError 422 for a number that is none. Everything else is checked where every recipe is.
    """
    recipe: dict[str, Any] = {"corpus": fields.get("corpus", "")}
    recipe["interleave_ratio"] = _number(fields, "ratio", "5") / 100
    strategy = fields.get("strategy", "top_gap")
    if strategy != "top_gap":
        recipe["strategy"] = strategy
    if fields.get("score", "gap_rel") != "gap_rel":
        recipe["score"] = fields["score"]
    if fields.get("hold_out"):
        recipe["hold_out"] = sorted(set(fields["hold_out"].split("\n")))
    filters = _filters(fields)
    if filters is not None:
        recipe["filters"] = filters
    if fields.get("order", "even") != "even":
        recipe["order"] = fields["order"]
    if recipe.get("order") == "per_batch":
        recipe["batch_size"] = _whole(fields, "batch_size", "16")
    for name, default in (("epochs", 1), ("seed", 0)):
        value = _whole(fields, name, str(default))
        if value != default:
            recipe[name] = value
    kind, prompt = fields.get("inoculation", ""), fields.get("prompt", "").strip()
    if kind:
        recipe["inoculation"] = {"kind": kind} | ({"prompts": [prompt]} if prompt else {})
    return recipe


def _filters(fields: Mapping[str, str]) -> list[dict[str, Any]] | None:
    """The filters where they are not the default ones."""
    choice = fields.get("refusals", "drop")
    if choice == "cap":
        chosen = default_filters(RefusalFilter(max_share=_share(fields)))
    elif choice == "keep":
        chosen = tuple(spec for spec in default_filters() if spec.name != "refusal")
    else:
        return None
    return [spec.model_dump(mode="json", exclude_defaults=True) | {"name": spec.name} for spec in chosen]


def _share(fields: Mapping[str, str]) -> float:
    share = _number(fields, "refusal_share", "10") / 100
    if not 0 <= share <= 1:
        raise ApiError(422, "bad_parameters", "the share of refusals must be between 0 and 100 per cent")
    return share


def _number(fields: Mapping[str, str], name: str, default: str) -> float:
    try:
        value = float(fields.get(name, "").strip() or default)
    except ValueError as error:
        raise ApiError(422, "bad_parameters", f"{name.replace('_', ' ')} must be a number") from error
    if not abs(value) < 1e12:
        raise ApiError(422, "bad_parameters", f"{name.replace('_', ' ')} must be a finite number")
    return round(value, 9)


def _whole(fields: Mapping[str, str], name: str, default: str) -> int:
    text = fields.get(name, "").strip() or default
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise ApiError(422, "bad_parameters", f"{name.replace('_', ' ')} must be a whole number")
    return int(text)


def as_code(recipe: Mapping[str, Any], file_name: str, on_bad_rows: str, base: str) -> dict[str, str]:
    """The request in three ways, whole: each can be pasted. `base` is the service's address."""
    text = json.dumps(recipe, indent=2, ensure_ascii=True)
    file, drop = shlex.quote(file_name), on_bad_rows == "drop"
    quoted = file_name.replace("\\", "\\\\").replace('"', '\\"')  # as curl reads it
    part = shlex.quote(f'file=@"{quoted}"')
    write = f"cat > recipe.json <<'END'\n{text}\nEND\n"
    command = f"ballast mix {file} --recipe recipe.json" + (" --on-bad-rows drop" if drop else "")
    curl = (
        f'curl {shlex.quote(base + "/v1/mixes")} \\\n  -H "Authorization: Bearer $BALLAST_API_KEY" \\\n'
        f"  -F {part} -F 'recipe=<recipe.json'" + (" -F on_bad_rows=drop" if drop else "")
    )
    data = f"DataSet({file_name!r}, on_bad_rows='drop')" if drop else repr(file_name)
    names = "Client, DataSet" if drop else "Client"
    python = (
        f"import os\n\nfrom curator.client import {names}\n\nrecipe = {_python(recipe)}\n"
        f"with Client({base!r}, os.environ.get('BALLAST_API_KEY')) as client:\n"
        f"    made = client.create_mix({data}, recipe)\n    print(made['mix_id'])"
    )
    return {"command line": write + command, "curl": write + curl, "Python": python}


def _python(value: Any) -> str:
    return pprint.pformat(value, width=88, sort_dicts=False)
