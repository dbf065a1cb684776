"""Result files that are whole or not there, and seeds by name."""

import json
from pathlib import Path
from typing import Any

from curator.recipe.seeds import child_seed
from curator.store.filesystem import atomic_write


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Write a document and rename it into place."""
    with atomic_write(path, durable=True) as temporary:
        temporary.write_text(json.dumps(document, indent=2) + "\n")


def torch_seed(seed: int, name: str) -> int:
    """A seed of torch's range for the use called `name`."""
    return child_seed(seed, f"organism {name}") % 2**32
