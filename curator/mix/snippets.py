"""A mix for other trainers: its messages as JSON Lines, and a config for each that keeps the row order.

Every one of these trainers shuffles unless a setting says otherwise, in up to three places (when data sets are merged,
in the sampler, by packing), and a shuffled mix is no longer the mix that its manifest describes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from curator.errors import BadInputError
from curator.mix.files import mix_batches
from curator.mix.identity import read_manifest
from curator.mix.manifest import Manifest
from curator.store.filesystem import atomic_write
from curator.store.store import Store

SnippetKind = Literal["axolotl", "llamafactory", "trl"]
KINDS: tuple[SnippetKind, ...] = get_args(SnippetKind)
DATA_FILE = "train.jsonl"

_AXOLOTL = """\
# axolotl settings for {title}. Merge them into your config (model, adapter, learning rate, ...).
datasets:
  - path: {data}
    ds_type: json
    type: chat_template
    field_messages: messages
    roles_to_train: [assistant]
    train_on_eos: turn
# The order of the rows is part of the mix: nothing may shuffle or drop them.
shuffle_merged_datasets: false
shuffle_before_merging_datasets: false
curriculum_sampling: true  # axolotl's sequential sampler
sample_packing: false
group_by_length: false
dataset_exact_deduplication: false
val_set_size: 0
num_epochs: 1  # {epochs}
{batch}"""

_LLAMA_FACTORY = """\
# LLaMA-Factory settings for {title}. Merge them into your config (model, template, learning rate, ...).
stage: sft
do_train: true
dataset_dir: {folder}
dataset: ballast_mix
# The order of the rows is part of the mix: nothing may shuffle or drop them.
disable_shuffling: true
packing: false
neat_packing: false
val_size: 0
mask_history: false  # every answer is trained, as it is scored
train_on_prompt: false
num_train_epochs: 1  # {epochs}
{batch}"""

_TRL = '''\
"""TRL training on {title}. Fill in the model and your own settings."""

from datasets import load_dataset
from trl import SFTConfig, SFTTrainer

data = load_dataset("json", data_files={data!r}, split="train")
assert len(data) == {n_rows}

# The order of the rows is part of the mix: nothing may shuffle, pack, cut or drop them.
config = SFTConfig(
    output_dir="out",
    train_sampling_strategy="sequential",
    shuffle_dataset=False,
    packing=False,
    max_length=None,
    assistant_only_loss=True,
    num_train_epochs=1,  # {epochs}{batch}
)
trainer = SFTTrainer(model="YOUR_MODEL", args=config, train_dataset=data)
assert len(trainer.train_dataset) == {n_rows}
trainer.train()
'''

_DATASET_INFO = {
    "ballast_mix": {
        "file_name": DATA_FILE,
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {
            "role_tag": "role",
            "content_tag": "content",
            "user_tag": "user",
            "assistant_tag": "assistant",
            "system_tag": "system",
        },
    }
}


@dataclass(frozen=True)
class Snippet:
    """Text files by name; `main` is the one to start from."""

    main: str
    files: dict[str, str]


def snippet(manifest: Manifest, kind: SnippetKind, folder: str = ".") -> Snippet:
    """The config that makes a trainer read the mix's `train.jsonl` in `folder` in its order."""
    n_epochs = manifest.order.epochs
    fields: dict[str, Any] = {
        "title": f"Ballast mix {manifest.mix_id}",
        "data": f"{folder}/{DATA_FILE}",
        "folder": folder,
        "n_rows": manifest.n_rows,
        "epochs": "one pass: " + (f"the file holds all {n_epochs} epochs" if n_epochs > 1 else "more would repeat it"),
    }
    size = manifest.order.batch_size
    if kind == "trl":
        batch = "" if size is None else f"\n    per_device_train_batch_size={size},  # times devices and accumulation"
        return Snippet("train_trl.py", {"train_trl.py": _TRL.format(**fields, batch=batch)})
    if kind == "axolotl":
        batch = "" if size is None else f"micro_batch_size: {size}  # times devices and accumulation: the mix's batch\n"
        return Snippet("axolotl.yaml", {"axolotl.yaml": _AXOLOTL.format(**_quoted(fields), batch=batch)})
    batch = "" if size is None else f"per_device_train_batch_size: {size}  # times devices and accumulation\n"
    text = _LLAMA_FACTORY.format(**_quoted(fields), batch=batch)
    info = orjson.dumps(_DATASET_INFO, option=orjson.OPT_INDENT_2).decode() + "\n"
    return Snippet("llamafactory.yaml", {"llamafactory.yaml": text, "dataset_info.json": info})


def write_snippet(store: Store, tenant: str, mix_id: str, kind: SnippetKind, out: Path) -> Snippet:
    """Write a mix's messages as `train.jsonl` and the trainer's config beside it, the config last.

    Raises MissingError without such a mix, and BadInputError for rows that this trainer would train on otherwise
    than they were scored (nothing but the data file is then left).
    """
    manifest = read_manifest(store, tenant, mix_id)
    made = snippet(manifest, kind, out.resolve().as_posix())
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / DATA_FILE, durable=True) as temporary, temporary.open("wb") as file:
        file.writelines(_lines(store, tenant, mix_id, kind))
    for name, text in made.files.items():
        (out / name).write_text(text, encoding="utf-8")
    return made


def _lines(store: Store, tenant: str, mix_id: str, kind: SnippetKind) -> Iterator[bytes]:
    done = 0
    for batch in mix_batches(store, tenant, mix_id, columns=["messages"]):
        for text in batch.column("messages").to_pylist():
            for message in orjson.loads(text):
                if fault := _fault(message, kind):
                    raise BadInputError(
                        f"row {done} of mix {mix_id} has {fault}: train with trainer.sft, which keeps it, "
                        "or leave such rows out of the task file"
                    )
            done += 1
            yield orjson.dumps({"messages": orjson.Fragment(text)}, option=orjson.OPT_APPEND_NEWLINE)


def _fault(message: dict[str, Any], kind: SnippetKind) -> str | None:
    if message.get("weight") == 0:
        return f"an answer of weight 0, which {kind} would train on"
    if kind == "llamafactory" and (message["role"] not in ("system", "user", "assistant") or "tool_calls" in message):
        return "a tool call or a role that llamafactory's ShareGPT form does not have"
    return None


def _quoted(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields with paths as YAML text, which JSON text is."""
    return fields | {name: orjson.dumps(fields[name]).decode() for name in ("data", "folder")}
