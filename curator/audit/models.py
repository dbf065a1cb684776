"""The models that an audit can run: which folder is which scorer of the pool, identified by content, not by name.

An audit scores as the pool was scored: with its engine (torch or vLLM here), its dtype, its renderer's settings, and
merged adapters where those of the pool were.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from curator.corpus.manifest import Scorer
from curator.errors import BadInputError, MissingDependencyError, MissingError
from curator.render import Renderer, RenderSettings
from curator.scoring.engines.base import Engine, Launch, OnRows, RowLoss, TokenScores
from curator.scoring.engines.launch import TorchLaunch, torch_launch
from curator.scoring.engines.vllm_engine import VllmLaunch, engine_version, installed_vllm, vllm_adapter
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
    """One base model and the adapters on it; an engine stays loaded between audits.

    `launcher` makes the engine of a folder in a dtype, by default torch here; pools that vLLM scored get vLLM.
    """

    model_dir: Path
    adapter_dirs: Sequence[Path] = ()
    launcher: Launcher | None = None
    batch_tokens: int | None = None
    threads: int | None = None
    _engines: dict[Launch, Engine] = field(default_factory=dict)
    _renderers: dict[RenderSettings | None, Renderer] = field(default_factory=dict)

    def check(self) -> None:
        """Raise BadInputError for folders that hold no model or adapter."""
        check_model_dir(self.model_dir)
        for adapter in self.adapter_dirs:
            check_adapter_dir(adapter)

    def renderer(self, settings: RenderSettings | None = None) -> Renderer:
        """The renderer of the model folder with these settings, such as the pool's."""
        if settings not in self._renderers:
            self._renderers[settings] = Renderer.from_folder(self.model_dir, settings=settings)
        return self._renderers[settings]

    def launch(self, identity: Mapping[str, Any], adapter: Path | None = None) -> Launch:
        """The engine that a scorer's identity names, not yet loaded; vLLM sizes itself by the adapter.

        Raises BadInputError for a pool that a server scored, MissingDependencyError where vLLM is not installed.
        """
        merge = is_merged(identity)
        if identity["engine"] == "vllm":
            return self._vllm(identity, adapter, merge)
        if identity["engine"] == "server":
            raise BadInputError(
                "the pool was scored by a vLLM server, whose losses no other engine gives and whose address is not "
                "recorded: an audit needs the pool scored here, under every model, with `python -m curator score "
                f"--corpus NAME --model {self.model_dir} --engine vllm` or `--engine torch`"
            )
        launch = (self.launcher or _torch)(self.model_dir, str(identity["dtype"]))
        return replace(launch, merge=True) if merge else launch

    def _vllm(self, identity: Mapping[str, Any], adapter: Path | None, merge: bool) -> VllmLaunch:
        try:
            _, device = installed_vllm()
            if adapter is not None and not merge:
                vllm_adapter(adapter)
            return VllmLaunch(
                self.model_dir.absolute(), device, str(identity["dtype"]), engine_version(), identity["max_length"],
                adapter and adapter.absolute(), merge, self.batch_tokens, self.threads,
            )  # fmt: skip
        except MissingDependencyError as error:
            raise MissingDependencyError(
                f"the pool was scored by vLLM, which its audits need: {error.message}"
            ) from error

    def adapter_of(self, scorer: Scorer, renderer: Renderer) -> Path | None:
        """The adapter folder of a scorer, None for the base model alone.

        Raises MissingError when no folder here gives the scorer's id, naming a setting that differs for all of them;
        and as `launch`.
        """
        said = scorer.identity
        launch = self.launch(said)
        how = (said["mask_rule"], said["max_length"], said["dtype"], launch.name, launch.version)
        measure = Measure(renderer, *how)
        found = {}
        for adapter in (None, *self.adapter_dirs):
            identity = model_identity(self.model_dir, adapter, measure)
            if is_merged(said):
                identity["adapter_mode"] = said["adapter_mode"]
            if scorer_id(identity) == scorer.scorer_id:
                return adapter
            found = identity
        fixed = [name for name in said if name != "adapter_sha256" and found.get(name) != said[name]]
        why = "no adapter given here has its weights"
        if fixed:
            why = f"{fixed[0]} is {found.get(fixed[0])!r} here and {said[fixed[0]]!r} for the pool"
        raise MissingError(f"scorer {scorer.shown} cannot run on this worker: {why}")

    def engine(self, launch: Launch, on_rows: OnRows) -> "KeptEngine":
        """The loaded engine, which tells `on_rows` of its progress and outlives its close.

        vLLM takes the memory that there is: any other engine is closed for it, and it for any other.
        """
        if launch not in self._engines:
            if any("vllm" in (item.name, launch.name) for item in self._engines):
                self.close()
            self._engines[launch] = launch()
        return KeptEngine(self._engines[launch], on_rows)

    def close(self) -> None:
        """Free the models' memory."""
        for engine in self._engines.values():
            engine.close()
        self._engines.clear()


def no_token_scores(engine: str) -> BadInputError:
    """Why an engine that gives sums alone serves not here."""
    return BadInputError(f"the engine {engine} gives no losses of single tokens: score with torch")


def is_merged(identity: Mapping[str, Any]) -> bool:
    """Whether the scorer's adapters were merged into the weights."""
    return identity.get("adapter_mode") == "merged"


class KeptEngine:
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

    def token_nll(self, row: "Rendered") -> npt.NDArray[np.float64]:
        """As the engine's own; raises BadInputError for one that gives sums alone."""
        if not isinstance(self._engine, TokenScores):
            raise no_token_scores(self.name)
        return self._engine.token_nll(row)

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

    models = AuditModels(model_dir, tuple(adapter_dirs), launcher, batch_tokens, threads)
    models.check()
    return models
