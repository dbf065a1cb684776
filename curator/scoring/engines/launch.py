"""The launch of the torch engine and of its reference (`base.Launch`); importing this does not import torch."""

from dataclasses import dataclass, replace
from pathlib import Path

from curator.scoring.engines.base import Engine, Reference


@dataclass(frozen=True)
class TorchLaunch:
    """The torch engine of a model folder; `device` and `dtype` are resolved, `threads` None measures, `merge` merges
    adapters into the weights."""

    model_dir: Path
    device: str
    dtype: str
    version: str
    batch_tokens: int | None = None
    threads: int | None = None
    merge: bool = False
    name: str = "torch"

    def __call__(self) -> Engine:
        """Load it. Importing torch takes seconds, so not before a row has to be scored."""
        from curator.scoring.engines.torch_engine import TorchEngine
        from curator.scoring.engines.torch_model import set_threads

        if self.device == "cpu":
            set_threads(self.threads)
        return TorchEngine(
            self.model_dir, device=self.device, dtype=self.dtype, batch_tokens=self.batch_tokens, merge=self.merge
        )

    def with_threads(self, n: int) -> "TorchLaunch":
        """The same on `n` CPU threads."""
        return replace(self, threads=n)


def torch_launch(
    model_dir: Path,
    device: str,
    dtype: str,
    batch_tokens: int | None = None,
    threads: int | None = None,
    merge: bool = False,
) -> TorchLaunch:
    """Resolve device and dtype on this machine; BadInputError for what it lacks."""
    from curator.scoring.engines.torch_model import engine_version, resolve_device, resolve_dtype

    found = resolve_device(device)
    return TorchLaunch(
        model_dir.absolute(), found, resolve_dtype(dtype, found), engine_version(), batch_tokens, threads, merge
    )


@dataclass(frozen=True)
class TorchReferenceLaunch:
    """The plain reference of a model folder and adapter."""

    model_dir: Path
    adapter_dir: Path | None
    device: str
    dtype: str

    def __call__(self) -> Reference:
        """Load it."""
        from curator.scoring.engines.torch_reference import TorchReference

        return TorchReference(self.model_dir, self.adapter_dir, device=self.device, dtype=self.dtype)
