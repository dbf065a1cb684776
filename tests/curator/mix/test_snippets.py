import ast
import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from curator.__main__ import main
from curator.errors import BadInputError, MissingError
from curator.mix.build import build_mix
from curator.mix.cards import CARD_FILES
from curator.mix.files import mix_batches
from curator.mix.identity import read_manifest
from curator.mix.snippets import (
    KINDS,
    SnippetKind,
    mix_shape,
    snippet,
    write_snippet,
)
from curator.store.store import Store
from tests.mix_stores import (
    recipe,
    scored_store,
    task_records,
    task_set,
)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    root = tmp_path_factory.mktemp("snippets")
    store = scored_store(root / "store")
    return store, build_mix(store, task_set(root), recipe(interleave_ratio=0.1)).mix_id


def _settings(store: Store, mix_id: str, kind: SnippetKind) -> dict[str, Any]:
    made = snippet(read_manifest(store, "local", mix_id), kind, mix_shape(store, "local", mix_id))
    document: dict[str, Any] = yaml.safe_load(made.files[made.main])
    return document


def test_axolotl_neither_shuffles_nor_packs(mixed: tuple[Store, str]) -> None:
    document = _settings(*mixed, "axolotl")
    assert document["datasets"][0]["path"] == "./train.jsonl"
    off = ("shuffle_merged_datasets", "shuffle_before_merging_datasets", "sample_packing", "group_by_length")
    assert [document[key] for key in off] == [False] * 4
    assert document["dataset_exact_deduplication"] is False
    assert document["curriculum_sampling"] is True
    assert (document["num_epochs"], document["val_set_size"]) == (1, 0)


def test_llamafactory_neither_shuffles_nor_packs(mixed: tuple[Store, str]) -> None:
    store, mix_id = mixed
    document = _settings(store, mix_id, "llamafactory")
    assert document["disable_shuffling"] is True
    assert [document[key] for key in ("packing", "neat_packing", "val_size", "mask_history")] == [
        False,
        False,
        0,
        False,
    ]
    files = snippet(read_manifest(store, "local", mix_id), "llamafactory", mix_shape(store, "local", mix_id)).files
    assert json.loads(files["dataset_info.json"])[document["dataset"]]["file_name"] == "train.jsonl"


# What the trainers' own schemas declare, of the keys that the settings use: axolotl 0.19.0 (utils/schemas/config.py,
# training.py and datasets.py) and LLaMA-Factory 0.9.5 (hparams/data_args.py and finetuning_args.py, data/parser.py).
# Both pull in hundreds of packages of other versions, so their wheels were read and are not installed here.
AXOLOTL_KEYS = {
    "datasets", "shuffle_merged_datasets", "shuffle_before_merging_datasets", "curriculum_sampling", "sample_packing",
    "group_by_length", "dataset_exact_deduplication", "val_set_size", "num_epochs", "micro_batch_size", "sequence_len",
    "pad_to_sequence_len", "excess_length_strategy", "dataset_prepared_path",
}  # fmt: skip
AXOLOTL_DATASET_KEYS = {"path", "ds_type", "type", "field_messages", "roles_to_train", "train_on_eos"}
LLAMA_FACTORY_KEYS = {
    "stage", "dataset_dir", "dataset", "disable_shuffling", "packing", "neat_packing", "val_size", "mask_history",
    "train_on_prompt", "cutoff_len", "enable_thinking",
}  # fmt: skip
LLAMA_FACTORY_TAGS = {"role_tag", "content_tag", "user_tag", "assistant_tag", "system_tag"}
TRAINING_ARGUMENTS = {"do_train", "num_train_epochs", "per_device_train_batch_size"}  # of transformers


@pytest.fixture(scope="module")
def batched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, str]:
    """A mix for batches, whose settings hold every key that any mix's do."""
    root = tmp_path_factory.mktemp("batched")
    store = scored_store(root / "store")
    made = build_mix(store, task_set(root, 30), recipe(rows=10, order="per_batch", batch_size=4))
    return store, made.mix_id


def test_axolotl_declares_every_key(batched: tuple[Store, str]) -> None:
    document = _settings(*batched, "axolotl")
    assert document.keys() == AXOLOTL_KEYS
    assert document["datasets"][0].keys() == AXOLOTL_DATASET_KEYS


def test_llamafactory_declares_every_key(batched: tuple[Store, str]) -> None:
    store, mix_id = batched
    assert _settings(store, mix_id, "llamafactory").keys() == LLAMA_FACTORY_KEYS | TRAINING_ARGUMENTS
    info = json.loads(
        snippet(read_manifest(store, "local", mix_id), "llamafactory", mix_shape(store, "local", mix_id)).files[
            "dataset_info.json"
        ]
    )
    assert info["ballast_mix"].keys() == {"file_name", "formatting", "columns", "tags"}
    assert info["ballast_mix"]["tags"].keys() == LLAMA_FACTORY_TAGS
    assert info["ballast_mix"]["formatting"] in ("alpaca", "sharegpt", "openai")


@pytest.mark.slow
def test_transformers_knows_the_training_arguments() -> None:
    from transformers import TrainingArguments  # slow to import

    assert {field.name for field in fields(TrainingArguments)} >= TRAINING_ARGUMENTS


def _trl_options(store: Store, mix_id: str) -> dict[str, Any]:
    made = snippet(read_manifest(store, "local", mix_id), "trl", mix_shape(store, "local", mix_id))
    calls = [node for node in ast.walk(ast.parse(made.files[made.main])) if isinstance(node, ast.Call)]
    (config,) = [call for call in calls if getattr(call.func, "id", "") == "SFTConfig"]
    return {keyword.arg: ast.literal_eval(keyword.value) for keyword in config.keywords if keyword.arg}


def test_trl_keeps_the_order(mixed: tuple[Store, str]) -> None:
    options = _trl_options(*mixed)
    wanted = {"train_sampling_strategy": "sequential", "shuffle_dataset": False, "packing": False, "max_length": None}
    assert options.items() >= wanted.items()


@pytest.mark.slow
def test_trl_knows_every_option(mixed: tuple[Store, str]) -> None:
    from trl import SFTConfig  # slow to import

    options = _trl_options(*mixed)
    config = SFTConfig(**options, use_cpu=True, report_to="none")
    assert {name: getattr(config, name) for name in options} == options


def test_a_mix_for_batches_says_the_batch(tmp_path: Path) -> None:
    store = scored_store(tmp_path / "store")
    made = build_mix(store, task_set(tmp_path, 30), recipe(rows=10, order="per_batch", batch_size=4)).mix_id
    assert _settings(store, made, "axolotl")["micro_batch_size"] == 4
    assert _settings(store, made, "llamafactory")["per_device_train_batch_size"] == 4
    assert _trl_options(store, made)["per_device_train_batch_size"] == 4


@pytest.mark.parametrize("kind", KINDS)
def test_the_folder_holds_the_rows_in_order(mixed: tuple[Store, str], kind: SnippetKind, tmp_path: Path) -> None:
    store, mix_id = mixed
    out = tmp_path / "a folder: with # signs"
    made = write_snippet(store, "local", mix_id, kind, out)
    lines = [json.loads(line)["messages"] for line in (out / "train.jsonl").read_text().splitlines()]
    batches = mix_batches(store, "local", mix_id)
    assert lines == [json.loads(text) for batch in batches for text in batch.column("messages").to_pylist()]
    assert {path.name for path in out.iterdir()} == {"train.jsonl", *CARD_FILES, *made.files}
    assert not any(str(tmp_path) in text for text in made.files.values())


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "datasets"])
def test_rows_that_would_be_trained_otherwise_are_refused(kind: SnippetKind, tmp_path: Path) -> None:
    records = task_records(20)
    ask = {"role": "user", "content": "q"}
    records[7]["messages"] = [ask, {"role": "assistant", "content": "x", "weight": 0}, *records[7]["messages"]]
    store = scored_store(tmp_path / "store")
    mix_id = build_mix(store, task_set(tmp_path, records=records), recipe(rows=2)).mix_id
    with pytest.raises(BadInputError, match=f"weight 0, which {kind} would train on"):
        write_snippet(store, "local", mix_id, kind, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_tool_rows_are_not_for_llamafactory(tmp_path: Path) -> None:
    records = task_records(20)
    call = {"name": "f", "arguments": "{}"}
    records[3]["messages"].append({"role": "assistant", "tool_calls": [call]})
    store = scored_store(tmp_path / "store")
    mix_id = build_mix(store, task_set(tmp_path, records=records), recipe(rows=2)).mix_id
    with pytest.raises(BadInputError, match="a tool call or a role that llamafactory"):
        write_snippet(store, "local", mix_id, "llamafactory", tmp_path / "out")
    write_snippet(store, "local", mix_id, "trl", tmp_path / "out")


@pytest.mark.parametrize(
    ("roles", "taken"),
    [
        (["user", "assistant"], True),
        (["system", "user", "assistant", "user", "assistant"], True),
        (["user", "user", "assistant"], False),
        (["user", "assistant", "assistant"], False),
        (["user", "system", "assistant"], False),
    ],
)
def test_rows_that_llamafactory_would_drop_are_refused(roles: list[str], taken: bool, tmp_path: Path) -> None:
    records = task_records(20)
    records[3]["messages"] = [{"role": role, "content": f"text {at}"} for at, role in enumerate(roles)]
    store = scored_store(tmp_path / "store")
    mix_id = build_mix(store, task_set(tmp_path, records=records), recipe(rows=2)).mix_id
    if taken:
        write_snippet(store, "local", mix_id, "llamafactory", tmp_path / "out")
    else:
        with pytest.raises(BadInputError, match=rf"turns that do not alternate \({', '.join(roles)}\)"):
            write_snippet(store, "local", mix_id, "llamafactory", tmp_path / "out")
    write_snippet(store, "local", mix_id, "axolotl", tmp_path / "axolotl")


def test_two_mixes_do_not_share_what_axolotl_prepared(mixed: tuple[Store, str], batched: tuple[Store, str]) -> None:
    paths = [_settings(*item, "axolotl")["dataset_prepared_path"] for item in (mixed, batched)]
    assert paths == [f"./prepared-{mix_id[:12]}" for _, mix_id in (mixed, batched)]
    assert paths[0] != paths[1]


def test_the_command_prints_or_writes(
    mixed: tuple[Store, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, mix_id = mixed
    base = ["snippet", mix_id, "trl", "--store", str(store.local_path(""))]
    assert main(base) == 0
    assert 'train_sampling_strategy="sequential"' in capsys.readouterr().out
    assert main([*base, "--out", str(tmp_path / "o")]) == 0
    assert "start from train_trl.py" in capsys.readouterr().out
    assert main([*base, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["main"] == "train_trl.py"
    assert main(["snippet", "0" * 32, "trl", "--store", str(store.local_path(""))]) == 2
    with pytest.raises(MissingError, match="no mix"):
        read_manifest(store, "local", "0" * 32)
