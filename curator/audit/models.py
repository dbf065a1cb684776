"""The models that an audit can run: which folder is which scorer of the pool, identified by content, not by name."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from curator.corpus.manifest import Scorer
from curator.errors import BadInputError, MissingError
from curator.render import Renderer
from curator.scoring.engines.base import Engine, OnRows, RowLoss
from curator.scoring.engines.launch import TorchLaunch, torch_launch
from curator.scoring.identity import (
    Measure,
    check_adapter_dir,
    check_model_dir,
    model_identity,
    scorer_id,
)

if TYPE_CHECKING:
    from curator.render import Rendered

Launcher = Callable[[Path, str], TorchLaunch]  # (model folder, dtype) -> engine


@dataclass
class AuditModels:
    """One base model and the adapters on it; the engine stays loaded between audits.

    `launcher` makes the engine of a folder in a dtype, by default torch here.
    """

    model_dir: Path
    adapter_dirs: Sequence[Path] = ()
    launcher: Launcher | None = None
    _engines: dict[str, Engine] = field(default_factory=dict)
    _renderer: Renderer | None = None

    def check(self) -> None:
        """Raise BadInputError for folders that hold no model or adapter."""
        check_model_dir(self.model_dir)
        for adapter in self.adapter_dirs:
            check_adapter_dir(adapter)

    @property
    def renderer(self) -> Renderer:
        """The renderer of the model folder."""
        if self._renderer is None:
            self._renderer = Renderer.from_folder(self.model_dir)
        return self._renderer

    def launch(self, dtype: str) -> TorchLaunch:
        """The engine in a dtype, not yet loaded."""
        return (self.launcher or _torch)(self.model_dir, dtype)

    def adapter_of(self, scorer: Scorer) -> Path | None:
        """The adapter folder of a scorer, None for the base model alone.

        Raises MissingError when no folder here gives the scorer's id, naming a setting that differs for all of them.
        """
        said = scorer.identity
        launch = self.launch(str(said["dtype"]))
        how = (said["mask_rule"], said["max_length"], said["dtype"], launch.name, launch.version)
        measure = Measure(self.renderer, *how)
        found = {}
        for adapter in (None, *self.adapter_dirs):
            identity = model_identity(self.model_dir, adapter, measure)
            if scorer_id(identity) == scorer.scorer_id:
                return adapter
            found = identity
        fixed = [name for name in said if name != "adapter_sha256" and found.get(name) != said[name]]
        why = "no adapter given here has its weights"
        if fixed:
            why = f"{fixed[0]} is {found.get(fixed[0])!r} here and {said[fixed[0]]!r} for the pool"
        raise MissingError(f"scorer {scorer.shown} cannot run on this worker: {why}")

    def engine(self, dtype: str, on_rows: OnRows) -> Engine:
        """The loaded engine, which tells `on_rows` of its progress and outlives its close."""
        if dtype not in self._engines:
            self._engines[dtype] = self.launch(dtype)()
        return _Kept(self._engines[dtype], on_rows)

    def close(self) -> None:
        """Free the models' memory."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()


class _Kept:
    """An engine whose close does nothing, since the next audit needs it again."""

    def __init__(self, engine: Engine, on_rows: OnRows) -> None:
        self._engine, self._on_rows = engine, on_rows
        self.name, self.version, self.dtype = engine.name, engine.version, engine.dtype

    def score(self, rows: "Sequence[Rendered]", on_rows: OnRows | None = None) -> list[RowLoss]:
        """As the engine's own."""

        def both(n_rows: int, n_tokens: int) -> None:
            self._on_rows(n_rows, n_tokens)
            if on_rows is not None:
                on_rows(n_rows, n_tokens)

        return self._engine.score(rows, both)

    def use_adapter(self, path: Path | None) -> None:
        """As the engine's own."""
        self._engine.use_adapter(path)

    def close(self) -> None:
        """Keep the engine."""


def _torch(
    model_dir: Path, dtype: str, device: str = "auto", batch_tokens: int | None = None, threads: int | None = None
) -> TorchLaunch:
    try:
        return torch_launch(model_dir, device, dtype, batch_tokens, threads)
    except ImportError as error:
        raise BadInputError("audits run a model: pip install 'ballast-mix[audit]'") from error


def audit_models(
    model_dir: Path,
    adapter_dirs: Sequence[Path] = (),
    device: str = "auto",
    batch_tokens: int | None = None,
    threads: int | None = None,
) -> AuditModels:
    """A model folder and its adapters, run with torch here; raises BadInputError for folders that are none."""

    def launcher(folder: Path, dtype: str) -> TorchLaunch:
        return _torch(folder, dtype, device, batch_tokens, threads)

    models = AuditModels(model_dir, tuple(adapter_dirs), launcher)
    models.check()
    return models
