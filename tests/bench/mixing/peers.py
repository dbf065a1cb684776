"""The peers as modules, imported where they are measured; without them the extra `bench` is named."""

from importlib import import_module
from types import ModuleType

from curator.errors import MissingDependencyError


def peer(name: str) -> ModuleType:
    """A peer's module; raises MissingDependencyError naming the extra when it is not installed."""
    try:
        module = import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"the benchmark measures beside {name}: pip install 'ballast-mix[bench]'"
        ) from error
    if name == "datasets":
        module.disable_progress_bars()
    return module
