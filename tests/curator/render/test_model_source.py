"""Models by name: a folder, or a hub id in a cache laid out as huggingface_hub lays it out, without network."""

import argparse
import json
import os
import re
from pathlib import Path

import pytest
from huggingface_hub import constants

from curator.__main__ import main
from curator.errors import BadInputError
from curator.render.model_source import hub_spec, locate_model, model_name, model_option
from tests.models import tiny_model_folder
from tests.parsers import all_verbs, options_of, parser_of

COMMIT = "5f0b02c75b57c5855da9ae460ce51323ea669d8a"
OTHER = "a" * 40


def hub_cache(root: Path, name: str, folder: Path, commit: str = COMMIT, ref: str = "main") -> Path:
    """`folder` as one commit of a hub model in the cache `root`: blobs, snapshots of links, and a ref."""
    repository = root / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / commit
    for path in (repository / "blobs", repository / "refs", snapshot):
        path.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(sorted(folder.iterdir())):
        blob = repository / "blobs" / f"{commit[:8]}{number}"
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    (repository / "refs" / ref).write_text(commit)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("model") / "m")


def test_a_hub_id_becomes_the_folder_of_its_commit(cache: Path, model: Path) -> None:
    snapshot = hub_cache(cache, "org/tiny-model", model)
    hub_cache(cache, "org/tiny-model", model, OTHER, ref="v2")
    assert locate_model("org/tiny-model") == locate_model("hf://org/tiny-model") == snapshot
    assert locate_model("org/tiny-model@v2").name == locate_model(f"org/tiny-model@{OTHER}").name == OTHER
    assert hub_spec(snapshot) == f"org/tiny-model@{COMMIT}"
    assert model_name(snapshot) == "tiny-model"


def test_a_folder_is_itself_and_is_never_taken_for_a_hub_id(
    cache: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub_cache(cache, "m/tiny", model)
    monkeypatch.chdir(model.parent)
    assert locate_model("m/tiny") == Path("m/tiny")  # m is a folder here
    assert locate_model("m") == Path("m")
    assert locate_model(Path("org/tiny-model")) == Path("org/tiny-model")
    assert hub_spec(model) is None
    assert model_name(model) == "m"


def test_a_model_that_is_not_in_the_cache_says_what_to_run(cache: Path) -> None:
    with pytest.raises(BadInputError, match=r"run `hf download org/absent --revision v3`"):
        locate_model("org/absent@v3")
    with pytest.raises(argparse.ArgumentTypeError, match="HF_HUB_OFFLINE is set"):
        model_option("org/absent")


def test_a_corpus_is_scored_by_a_model_of_the_hub(
    tmp_path: Path, cache: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub_cache(cache, "org/tiny-model", model)
    chats = tmp_path / "chats.jsonl"
    turns = [{"role": "user", "content": "What is two and two?"}, {"role": "assistant", "content": "It is four."}]
    chats.write_text(json.dumps({"messages": turns}) + "\n")
    place = ["--store", str(tmp_path / "store")]
    assert main(["ingest", str(chats), "--corpus", "chats", *place]) == 0
    options = ["score", "--corpus", "chats", "--role", "aligned", "--device", "cpu", "--dtype", "float32", "--json"]
    capsys.readouterr()
    assert main([*options, "--model", "org/tiny-model", *place]) == 0
    assert json.loads(capsys.readouterr().out)["label"] == "tiny-model"
    (scorer,) = (tmp_path / "store/scores/chats").glob("*/scorer.json")
    assert json.loads(scorer.read_text())["hub"] == f"org/tiny-model@{COMMIT}"
    with pytest.raises(SystemExit, match="2"):
        main([*options, "--model", "org/nowhere", *place])
    assert "hf download org/nowhere" in capsys.readouterr().err


# Options that name models, but not places of models: names at a server, hashes, a file, how adapters are used.
_OTHERS = frozenset({
    "--merge-adapter", "--declare-adapter-sha256", "--server-model", "--served-model", "--judge-model",
    "--openai-models", "--inoculation-adapter-scale", "--inoculation-adapter-schedule",
})  # fmt: skip


def test_every_option_that_names_a_model_takes_a_hub_id_with_its_revision(cache: Path, model: Path) -> None:
    """Walks the parsers of all commands: help, a revision that is there, and what to run for one that is not."""
    snapshot = hub_cache(cache, "org/tiny-model", model, ref="v2")
    found = []
    with pytest.MonkeyPatch.context() as patch:
        options = [item for verb in all_verbs() for item in options_of(parser_of(verb, patch))]
    for place, name, action in options:
        kind = action.type
        if kind is model_option or (re.search("model|adapter", name) and name not in _OTHERS):
            found.append((place, name))
            assert "ORG/NAME[@REVISION]" in str(action.help), (place, name)
        if kind is model_option:
            assert kind("org/tiny-model@v2") == snapshot
            with pytest.raises(argparse.ArgumentTypeError, match="run `hf download org/tiny-model --revision v3`"):
                kind("org/tiny-model@v3")
        elif (place, name) in found:  # settings of a plan and pairs of a name and an adapter are located later
            assert (place, name) in {
                ("provision", "--model"), ("safeguard", "--model"), ("lab calibration", "--adapter"),
            }  # fmt: skip
    assert len(found) > 35
