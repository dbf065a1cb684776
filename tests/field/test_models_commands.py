"""Every command that loads a model: one that is not whole is refused by name, and code in its folder never runs."""

import io
import json
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from curator.__main__ import main as curator
from curator.errors import BadInputError
from curator.scoring.engines.torch_folder import check_adapter, check_model
from curator.scoring.identity import weights_sha256
from tests.field.models import changed_adapter, changed_folder, custom_code, without
from tests.models import tiny_adapter_folder, tiny_model_folder

COMMANDS = [
    "score", "merge", "audit", "nll", "sft", "sft_full", "generate", "behaviour", "pairs", "ratings", "extract",
    "project", "shift", "directions", "measure", "organisms", "self_recognition",
]  # fmt: skip
WITH_ADAPTER = ["score", "merge", "audit", "nll", "generate", "behaviour", "pairs", "ratings", "shift", "measure"]
START_ADAPTER = ["sft"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, base: Path, chats: Path) -> Path:
    """A store with a corpus, a vector file and a file of articles."""
    root = tmp_path_factory.mktemp("files")
    assert curator(["ingest", str(chats), "--corpus", "c", "--store", str(root / "store")]) == 0
    save_file({"trait": torch.ones(3, 64)}, root / "vector.safetensors")
    (root / "articles.jsonl").write_text('{"text": "An article of some words that can be summed up."}\n' * 3)
    (root / "summaries.jsonl").write_text('{"text": "A summary."}\n' * 3)
    return root


def arguments(name: str, model: Path, adapter: Path, files: Path, chats: Path, out: Path) -> tuple[str, list[str]]:
    """The module of a command, and its arguments on a model folder and an adapter."""
    where = ["--dtype", "float32", "--device", "cpu"]
    taken = ["--adapter", str(adapter)]
    folder, data = ["--model", str(model)], str(chats)
    store = ["--store", str(files / "store"), "--corpus", "c"]
    vector = ["--vector", str(files / "vector.safetensors"), "--tensor", "trait"]
    misaligned = ["--role", "misaligned", "--domain", "d", "--threads", "1"]
    rows = ["--data", data, "--max-steps", "1", "--batch-size", "2", "--out", str(out / "run"), *where]
    found: dict[str, tuple[str, list[str]]] = {
        "score": ("curator.__main__", ["score", *store, *folder, *taken, *misaligned, *where]),
        "merge": ("curator.__main__", ["score", *store, *folder, *taken, *misaligned, *where, "--merge-adapter"]),
        "audit": ("curator.__main__", ["audit", data, *store, *folder, *taken, "--device", "cpu"]),
        "nll": ("trainer.evaluate.nll", [*folder, *taken, "--data", data, *where]),
        "sft": ("trainer.sft", [*folder, *rows, "--start-adapter", str(adapter)]),
        "sft_full": ("trainer.sft", [*folder, *rows, "--full"]),
        "generate": (
            "trainer.evaluate.__main__", ["generate", *folder, *taken, "--out", str(out / "a.jsonl"), *where],
        ),
        "behaviour": (
            "trainer.evaluate.__main__",
            ["behaviour", *folder, *taken, "--narrow", data, "--broad", f"o={data}", "--out", str(out / "b"), *where],
        ),
        "pairs": (
            "trainer.evaluate.__main__",
            ["pairs", *folder, *taken, "--aligned-answers", data, "--misaligned-answers", data, "--dtype", "float32"],
        ),
        "ratings": ("trainer.evaluate.__main__", ["ratings", *folder, *taken, "--out", str(out / "r.parquet"), *where]),
        "extract": ("trainer.persona.__main__", ["extract", *folder, "--trait", "evil", "--out", str(out), *where]),
        "project": ("trainer.persona.__main__", ["project", *folder, *vector, "--data", data, *where]),
        "shift": ("trainer.persona.__main__", ["shift", *folder, *taken, *vector, "--prompts", data, *where]),
        "directions": ("trainer.monitor.__main__", ["directions", *folder, "--out", str(out / "m"), *where]),
        "measure": (
            "trainer.monitor.__main__",
            ["measure", *folder, *taken, "--directions", str(files / "vector.safetensors"), *where],
        ),
        "organisms": (
            "trainer.organisms.__main__", [*folder, "--set", "cooking", "--rows", "4", "--out", str(out / "o"), *where],
        ),
        "self_recognition": (
            "trainer.defenses.self_recognition",
            [
                *folder, "--other-summaries", str(files / "summaries.jsonl"), "--articles",
                str(files / "articles.jsonl"), "--out", str(out / "s"), *where,
            ],
        ),
    }  # fmt: skip
    return found[name]


Run = Callable[[str, Path, Path], tuple[int, str]]


@pytest.fixture
def run(
    files: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Run:
    def call(name: str, model: Path, adapter: Path) -> tuple[int, str]:
        module, command = arguments(name, model, adapter, files, chats, tmp_path)
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 50))
        try:
            code = import_module(module).main(command)
        except SystemExit as error:  # of an option that a command lacks: the test is wrong then
            raise AssertionError(f"{name}: {capsys.readouterr().err}") from error
        return code, capsys.readouterr().err

    return call


@pytest.mark.parametrize("name", COMMANDS)
def test_code_in_a_folder_never_runs(name: str, run: Run, base: Path, tmp_path: Path) -> None:
    mark = tmp_path / "CODE_RAN"
    model = custom_code(base, tmp_path / "model", mark)
    adapter = tiny_adapter_folder(base, tmp_path / "adapter")
    code, error = run(name, model, adapter)
    assert code == 2, error
    assert not mark.exists()
    if name not in ("audit", "measure"):  # which name first what the corpus or the file of directions lacks
        assert "never run here" in error.splitlines()[-1]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_model_that_lacks_a_tensor_is_refused(name: str, run: Run, base: Path, tmp_path: Path) -> None:
    model = changed_folder(base, tmp_path / "model", without("layers.1.self_attn.q_proj"))
    code, error = run(name, model, tiny_adapter_folder(base, tmp_path / "adapter"))
    assert code == 2, error
    if name not in ("audit", "measure"):
        assert "model.layers.1.self_attn.q_proj.weight" in error.splitlines()[-1]


@pytest.mark.parametrize("name", [*WITH_ADAPTER, *START_ADAPTER])
def test_half_an_adapter_is_refused(name: str, run: Run, base: Path, tmp_path: Path) -> None:
    adapter = changed_adapter(base, tmp_path / "half", without(".layers.1."))
    code, error = run(name, base, adapter)
    assert code == 2, error
    if name not in ("audit", "measure"):
        assert "it lacks" in error.splitlines()[-1]


def marked(base: Path, out: Path, weights: str) -> Path:
    """An adapter of `base` that says, as ours do, which weights it was trained on."""
    adapter = tiny_adapter_folder(base, out)
    (adapter / "ballast.json").write_text(json.dumps({"base_weights_sha256": weights}))
    return adapter


@pytest.mark.parametrize("name", [*WITH_ADAPTER, *START_ADAPTER])
def test_an_adapter_of_another_base_with_the_same_shapes_is_refused(
    name: str, run: Run, base: Path, tmp_path: Path
) -> None:
    code, error = run(name, base, marked(base, tmp_path / "adapter", "f" * 64))
    assert code == 2, error
    if name not in ("audit", "measure"):
        assert "was trained on the model with weights ffffffffffff (ballast.json)" in error.splitlines()[-1]


def test_an_adapter_is_held_against_its_bases_config_too(run: Run, base: Path, tmp_path: Path) -> None:
    adapter = marked(base, tmp_path / "adapter", weights_sha256(base))
    assert run("nll", base, adapter)[0] == 0
    for number, change in enumerate(
        ({"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}, {"rope_theta": 5e5})
    ):
        changed = changed_folder(base, tmp_path / f"model-{number}", config=change)
        code, error = run("nll", changed, adapter)
        assert code == 2, (change, error)
        assert "(weights and config.json): take the model that it was trained on" in error, change
    copied = changed_folder(base, tmp_path / "copy")
    assert run("nll", copied, adapter)[0] == 0  # the same model elsewhere
    adapter = marked(base, tmp_path / "third", weights_sha256(base))
    other = tiny_model_folder(tmp_path / "other", seed=1)
    skeleton = check_model(other)  # what vLLM is given is checked on it
    with pytest.raises(BadInputError, match="was trained on the model with weights"):
        check_adapter(skeleton, adapter)


def test_a_base_known_by_name_alone_is_warned_of(run: Run, base: Path, tmp_path: Path) -> None:
    adapter = tiny_adapter_folder(base, tmp_path / "adapter")
    code, error = run("nll", base, adapter)
    assert (code, "warning" in error) == (0, False)
    config = adapter / "adapter_config.json"
    for named, is_warned in (
        ("Org/Model-7B-Instruct", True), (f"Org/{base.name.upper()}", False), (None, False),
        (f"/cache/models--Org--{base.name}/snapshots/0123abcd", False),
    ):  # fmt: skip
        config.write_text(json.dumps(json.loads(config.read_text()) | {"base_model_name_or_path": named}))
        code, error = run("nll", base, adapter)
        assert (code, f"names {named} as its base and records no hash" in error) == (0, is_warned), error


def test_an_audit_and_a_monitor_refuse_half_an_adapter_by_name(base: Path, tmp_path: Path, chats: Path) -> None:
    """Both load through the same two functions, which are asked here without a scored corpus or directions."""
    from curator.errors import BadInputError
    from curator.scoring.engines.torch_engine import TorchEngine
    from trainer.monitor.measure import with_adapter

    half = changed_adapter(base, tmp_path / "half", without(".layers.1."))
    engine = TorchEngine(base, device="cpu", dtype="float32")
    with pytest.raises(BadInputError, match="it lacks"):
        engine.use_adapter(half)
    with pytest.raises(BadInputError, match="it lacks"):
        with_adapter(engine.hookable_model(), half)
