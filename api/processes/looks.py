"""A stranger's file looked at in a process of its own: what `doctor` finds, for the API and for the page."""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from api.processes.builders import kept_store
from curator.audit.doctor import DoctorOptions, examine, model_of_corpus, shown_masks
from curator.errors import BallastError


def look(root: str, path: Path, options: DoctorOptions, corpus: str | None) -> dict[str, Any]:
    """The diagnosis as plain values; with a `corpus` its aligned model's template and window are looked at too.

    Raises as `examine` and `model_of_corpus` do.
    """
    return examine(path, options if corpus is None else _with_model(root, options, corpus)).as_dict()


def look_and_show(root: str, path: Path, options: DoctorOptions, corpus: str, n_rows: int) -> dict[str, Any]:
    """The same, and `shown_rows`: the first rows as that model reads them, none where it cannot be had."""
    with suppress(BallastError):
        options = _with_model(root, options, corpus)
    rows = [] if options.renderer is None else list(shown_masks(path, options, n_rows))
    return {**examine(path, options).as_dict(), "shown_rows": rows}


def _with_model(root: str, options: DoctorOptions, corpus: str) -> DoctorOptions:
    renderer, mask_rule, window = model_of_corpus(kept_store(root), corpus)
    return replace(options, renderer=renderer, mask_rule=mask_rule, window=window)
