"""What the frozen recipes give: one JSON document a recipe, and where two of them differ."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from curator.corpus.task_set import TaskSet, task_set_from_rows
from curator.errors import BallastError
from curator.mix.build import build_mix, plan_mix
from curator.mix.reasons import write_reasons
from curator.recipe import parse_recipe
from curator.recipe.policy import parse_policy
from curator.store.store import Store
from tests.frozen.corpus import task_records
from tests.frozen.store import PartsLayout, frozen_store

HERE = Path(__file__).parent
EXPECTED = HERE / "expected"
RECIPES = HERE / "recipes.yaml"
ROWS_A_LINE = 10

Document = dict[str, Any]


def documents(root: Path, layout: PartsLayout = "plain") -> dict[str, Document]:
    """The document of every recipe by its name, made in an empty folder."""
    store = frozen_store(root, layout)
    task_set = task_set_from_rows(task_records(), root / "tasks")
    given = yaml.safe_load(RECIPES.read_text(encoding="utf-8"))
    found = {}
    for name, case in given["mixes"].items():
        found[name] = _mixed(store, task_set, case, given["policies"], root / f"{name}.jsonl")
    for name, case in given["refused"].items():
        found[name] = _refused(store, task_set, case, given["policies"])
    return found


def _mixed(store: Store, task_set: TaskSet, case: Document, policies: Document, jsonl: Path) -> Document:
    """The manifest without the package version, the mix's rows in short, and a hash of every pool row's outcome."""
    recipe, policy = _parsed(case, policies)
    result = build_mix(store, task_set, recipe, "frozen", policy, jsonl)
    rows = jsonl.read_bytes()
    manifest = result.manifest.model_dump(mode="json")
    assert hashlib.sha256(rows).hexdigest() == manifest["rows_sha256"], "rows_sha256 is over the JSON Lines"
    assert result.mix_id == manifest["mix_id"], "the manifest names its mix"
    del manifest["product_version"]
    reasons = jsonl.with_suffix(".parquet")
    write_reasons(plan_mix(store, task_set, recipe, policy), reasons)
    return {"manifest": manifest, "rows": _short(rows), **_outcomes(reasons)}


def _refused(store: Store, task_set: TaskSet, case: Document, policies: Document) -> Document:
    """The error of a recipe that is refused; a recipe that gives a mix after all has none."""
    try:
        recipe, policy = _parsed(case, policies)
        build_mix(store, task_set, recipe, "frozen", policy)
    except BallastError as error:
        return {"error": type(error).__name__, "message": str(error), "details": json.loads(json.dumps(error.details))}
    return {"error": None}


def _parsed(case: Document, policies: Document) -> tuple[Any, Any]:
    policy = None if "policy" not in case else parse_policy(policies[case["policy"]])
    return parse_recipe(case["recipe"]), policy


def _short(rows: bytes) -> list[str]:
    """Origin (t or s), the beginning of the id and the prompt label of every row, some a line."""
    marks = []
    for line in rows.splitlines():
        row = json.loads(line)
        label = f"+{row['inoculation']}" if row.get("inoculation") else ""
        marks.append(f"{row['origin'][0]}:{row['example_id'][:6]}{label}")
    return [" ".join(marks[start : start + ROWS_A_LINE]) for start in range(0, len(marks), ROWS_A_LINE)]


def _outcomes(reasons: Path) -> Document:
    """Counts of the pool rows' outcomes, and a hash over all of them by pool and id."""
    rows = sorted(pq.read_table(reasons).to_pylist(), key=lambda row: (row["pool"], row["example_id"]))
    counts = Counter("chosen" if row["chosen"] else row["reason"] or "left over" for row in rows)
    text = json.dumps([[row[name] for name in sorted(row)] for row in rows])
    return {"outcomes": dict(sorted(counts.items())), "outcomes_sha256": hashlib.sha256(text.encode()).hexdigest()}


def text_of(document: Document) -> str:
    """A document as its file holds it: keys in their order, indented by one."""
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def write(found: dict[str, Document], folder: Path) -> list[str]:
    """Write every document to `NAME.json` and remove other ones; returns the names of those that changed."""
    folder.mkdir(parents=True, exist_ok=True)
    before = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.json"))}
    after = {name: text_of(document) for name, document in found.items()}
    changed = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    for name in changed:
        path = folder / f"{name}.json"
        if name in after:
            path.write_text(after[name], encoding="utf-8")
        else:
            path.unlink()
    return changed


def read(folder: Path) -> dict[str, Document]:
    """The documents that `write` wrote."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}


def differences(found: dict[str, Document], expected: dict[str, Document]) -> list[str]:
    """For each recipe that differs, the path of the first key that does, in the expected document's order."""
    names = sorted(found.keys() | expected.keys())
    firsts = ((name, next(_paths(found.get(name), expected.get(name), ""), None)) for name in names)
    return [f"{name}{first}" for name, first in firsts if first is not None]


def _paths(found: Any, expected: Any, path: str) -> Iterator[str]:
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in [*expected, *(key for key in found if key not in expected)]:
            if key in found and key in expected:
                yield from _paths(found[key], expected[key], f"{path}/{key}")
            else:
                yield f"{path}/{key}: {'added' if key in found else 'missing'}"
        if list(found) != list(expected):
            yield f"{path}: keys in the order {', '.join(found)}, expected {', '.join(expected)}"
    elif isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        for place, (one, two) in enumerate(zip(found, expected, strict=True)):
            yield from _paths(one, two, f"{path}/{place}")
    elif type(found) is not type(expected) or found != expected:
        yield f"{path}: found {_clip(found)}, expected {_clip(expected)}"


def _clip(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 200 else f"{text[:200]}..."
