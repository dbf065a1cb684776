"""Result files that are whole or not there, and seeds by name."""

import json
import os
from pathlib import Path
from typing import Any

from curator.recipe.seeds import child_seed


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".tmp-{os.getpid()}-{path.name}")
    temporary.write_text(json.dumps(document, indent=2) + "\n")
    temporary.replace(path)


def torch_seed(seed: int, name: str) -> int:
    """A seed of torch's range for the use called `name`."""
    return child_seed(seed, f"organism {name}") % 2**32
