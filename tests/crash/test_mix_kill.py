"""SIGKILL while a mix is built: readers never see half of one, and the next start is clean."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from curator.mix.build import build_mix, remove_left
from curator.mix.verify import verify
from curator.store.store import Store
from tests.mix_stores import recipe, scored_store, task_set
from tests.models import tiny_tokenizer_folder

N_TASK = 800  # most of a second of rendering and writing
CHECKOUT = Path(__file__).parents[2]

# argv: store, work folder, where to kill itself ("" for nowhere). Says "go" when the build starts.
SCRIPT = """
import os, signal, sys
from pathlib import Path
from curator.mix.build import build_mix
from curator.mix import build
from curator.store import store as store_module
from tests.mix_stores import recipe, task_set

root, workdir, where = sys.argv[1:]
Store = store_module.Store

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

if where == "before the manifest":
    build.describe = die
elif where == "before the rename":
    Store.rename_dir = die
elif where == "after the rename":
    rename = Store.rename_dir
    Store.rename_dir = lambda self, *paths: (rename(self, *paths), die())
tasks = task_set(Path(workdir), 800)
print("go", flush=True)
build_mix(Store(root).open(), tasks, recipe(rows=20))
"""


@pytest.fixture(scope="module")
def store_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kill")
    tiny_tokenizer_folder(root / "model")
    scored_store(root / "store", root / "model")
    return root / "store"


def start(store_root: Path, workdir: Path, where: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(store_root), str(workdir), where]
    return subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True)


def check_what_readers_see(store: Store) -> list[str]:
    """Every visible mix is whole; returns their ids."""
    visible = store.list("mixes/local")
    for mix in visible:
        verify(store, "local", mix)
    return visible


def check_next_start_is_clean(store: Store, workdir: Path) -> None:
    result = build_mix(store, task_set(workdir, N_TASK), recipe(rows=20))
    remove_left(store, "local")
    assert os.listdir(store.url("mixes/local")) == [result.mix_id]  # noqa: PTH208 - hidden names count too
    verify(store, "local", result.mix_id)
    store.delete("mixes/local")


@pytest.mark.parametrize(
    ("where", "n_visible"), [("before the manifest", 0), ("before the rename", 0), ("after the rename", 1)]
)
def test_killed_between_two_steps(store_root: Path, tmp_path: Path, where: str, n_visible: int) -> None:
    with start(store_root, tmp_path, where) as process:
        process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    store = Store(store_root).open(create=False)
    hidden = [name for name in os.listdir(store.url("mixes/local")) if name.startswith(".")]  # noqa: PTH208
    assert len(hidden) == 1 - n_visible
    assert len(check_what_readers_see(store)) == n_visible
    check_next_start_is_clean(store, tmp_path)


@pytest.mark.parametrize("n_kills", [2, pytest.param(8, marks=pytest.mark.slow)])
def test_killed_at_seeded_instants(store_root: Path, tmp_path: Path, n_kills: int) -> None:
    store = Store(store_root).open(create=False)
    instants = random.Random(11)
    with start(store_root, tmp_path) as process:  # how long a build takes here
        assert process.stdout is not None
        process.stdout.readline()
        started = time.monotonic()
        process.wait(timeout=60)
        build_s = time.monotonic() - started
    store.delete("mixes/local")
    n_killed = 0
    for _ in range(n_kills):
        with start(store_root, tmp_path) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "go\n"
            time.sleep(instants.uniform(0.02, 0.9) * build_s)
            process.kill()
            n_killed += process.wait(timeout=60) == -signal.SIGKILL
        check_what_readers_see(store)
    assert n_killed
    check_next_start_is_clean(store, tmp_path)
