"""A mix for other trainers: its messages as JSON Lines with its cards, and a config that keeps the row order.

Every one of these trainers shuffles unless a setting says otherwise, in up to three places (when data sets are merged,
in the sampler, by packing), and a shuffled mix is no longer the mix that its manifest describes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import orjson

from curator.errors import BadInputError
from curator.mix.cards import write_cards
from curator.mix.files import mix_batches
from curator.mix.identity import read_manifest
from curator.mix.manifest import Manifest
from curator.store.filesystem import atomic_write
from curator.store.store import Store

SnippetKind = Literal["axolotl", "datasets", "llamafactory", "trl", "unsloth"]
KINDS: tuple[SnippetKind, ...] = get_args(SnippetKind)
DATA_FILE = "train.jsonl"
# Tokens that a template may add to a message (markers, roles) and to a conversation (a system prompt of its own).
MESSAGE_TOKENS, CONVERSATION_TOKENS = 32, 256

_AXOLOTL = """\
# axolotl settings for {title}. Merge them into your config (model, adapter, learning rate, ...), and run
# axolotl in this folder.
datasets:
  - path: ./{data}
    ds_type: json
    type: chat_template
    field_messages: messages
    roles_to_train: [assistant]
    train_on_eos: turn
dataset_prepared_path: ./prepared-{short_id}  # a name for this mix alone: axolotl does not see that a file changed
# The order of the rows is part of the mix: nothing may shuffle, cut or drop them.
shuffle_merged_datasets: false
shuffle_before_merging_datasets: false
curriculum_sampling: true  # axolotl's sequential sampler
sample_packing: false
group_by_length: false
dataset_exact_deduplication: false
sequence_len: {length}  # no row has more tokens: {why_length}
pad_to_sequence_len: false
excess_length_strategy: raise
val_set_size: 0
num_epochs: 1  # {epochs}
{batch}"""

_LLAMA_FACTORY = """\
# LLaMA-Factory settings for {title}. Merge them into your config (model, template, learning rate, ...), and run
# it in this folder.
stage: sft
do_train: true
dataset_dir: .
dataset: ballast_mix
# The order of the rows is part of the mix: nothing may shuffle, cut or drop them.
disable_shuffling: true
packing: false
neat_packing: false
cutoff_len: {length}  # no row has more tokens: {why_length}
val_size: 0
mask_history: false  # every answer is trained, as it is scored
train_on_prompt: false
enable_thinking: null  # reasoning is trained as it is written: true would train an empty one, false would cut it out
num_train_epochs: 1  # {epochs}
{batch}"""

_TRL = """\
\"\"\"TRL training on {title}. Fill in the model and your own settings.\"\"\"

from pathlib import Path

from datasets import load_dataset
{imports}from trl import SFTConfig, SFTTrainer

MODEL = "YOUR_MODEL"

data = load_dataset(str(Path(__file__).parent), split="train")  # by README.md, which names {data} and its columns
assert len(data) == {n_rows}
{rows}
# The order of the rows is part of the mix: nothing may shuffle, pack, cut or drop them.
config = SFTConfig(
    output_dir="out",
    train_sampling_strategy="sequential",
    shuffle_dataset=False,
    packing=False,
    max_length=None,
    {loss}
    num_train_epochs=1,  # {epochs}{batch}
)
trainer = SFTTrainer(model=MODEL, args=config, train_dataset=data)
assert len(trainer.train_dataset) == {n_rows}
trainer.train()
"""

# One answer at the end of each row: TRL tells it from its prompt whatever the chat template.
_TRL_ONE_ANSWER = """
# Each row has one answer, its last turn: as prompt and completion it alone is trained, with any chat template.
data = data.map(
    lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]}, remove_columns=data.column_names
)
"""
_TRL_SEVERAL_ANSWERS = """
# Some rows have several answers. TRL finds them by the template's {% generation %} marks, its own or those that TRL
# knows for it; with a template that has none the whole conversation is trained, questions too.
try:
    get_training_chat_template(AutoTokenizer.from_pretrained(MODEL))
    answers_alone = True
except ValueError:
    answers_alone = False
    print("the chat template has no generation marks: questions are trained too (trainer.sft trains answers alone)")
"""
_TRL_IMPORTS = """\
from transformers import AutoTokenizer
from trl.chat_template_utils import get_training_chat_template
"""

_DATASETS = """\
\"\"\"{title} as a data set of Hugging Face `datasets`.\"\"\"

from pathlib import Path

from datasets import load_dataset

data = load_dataset(str(Path(__file__).parent), split="train")  # by README.md, which names {data} and its columns
assert len(data) == {n_rows}
# The order of the rows is part of the mix: never call data.shuffle().
# {epochs}{batch}
"""

_UNSLOTH = """\
\"\"\"unsloth training on {title}. Fill in the model and your own settings.\"\"\"

from pathlib import Path

from unsloth import FastLanguageModel  # before trl, which it patches

from datasets import load_dataset
from transformers import AutoTokenizer, DataCollatorForSeq2Seq
from trl import SFTConfig, SFTTrainer

MODEL = "YOUR_MODEL"
tokenizer = AutoTokenizer.from_pretrained(MODEL)


def encode(row):
    \"\"\"Token ids, and labels on the answers alone: what each adds to the conversation up to it.\"\"\"
    turns = row["messages"]
    ids = tokenizer.apply_chat_template(turns, return_dict=False)
    labels = [-100] * len(ids)
    for place, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        start = tokenizer.apply_chat_template(turns[:place], add_generation_prompt=True, return_dict=False)
        whole = tokenizer.apply_chat_template(turns[: place + 1], return_dict=False)
        if ids[: len(start)] != start or ids[: len(whole)] != whole:
            raise ValueError("the chat template changes earlier turns: train with trainer.sft")
        labels[len(start) : len(whole)] = ids[len(start) : len(whole)]
    return {{"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}}


data = load_dataset(str(Path(__file__).parent), split="train")  # by README.md, which names {data} and its columns
data = data.map(encode, remove_columns=data.column_names)
assert len(data) == {n_rows}
# No row is cut, and the window is no larger: for a larger one unsloth rescales the positions of a model.
LENGTH = max(map(len, data["input_ids"]))
model, tokenizer = FastLanguageModel.from_pretrained(MODEL, max_seq_length=LENGTH)
model = FastLanguageModel.get_peft_model(model)
# The order of the rows is part of the mix: nothing may shuffle, pack, cut or drop them.
config = SFTConfig(
    output_dir="out",
    train_sampling_strategy="sequential",
    shuffle_dataset=False,
    packing=False,
    padding_free=False,
    max_length=LENGTH,
    num_train_epochs=1,  # {epochs}{batch}
)
trainer = SFTTrainer(
    model=model, args=config, train_dataset=data, processing_class=tokenizer,
    data_collator=DataCollatorForSeq2Seq(tokenizer),
)
assert len(trainer.train_dataset) == {n_rows}
trainer.train()
"""

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


@dataclass(frozen=True)
class MixShape:
    """What a config must know of a mix's rows: a bound on the tokens of the longest, with any tokenizer and template,
    and whether each row has one answer, as its last turn."""

    max_tokens: int
    one_answer: bool


def mix_shape(store: Store, tenant: str, mix_id: str) -> MixShape:
    """Read every row of a mix. No tokenizer gives more tokens than a text has bytes; a template adds its markers."""
    longest, one_answer = 0, True
    for batch in mix_batches(store, tenant, mix_id, columns=["messages"]):
        for text in batch.column("messages").to_pylist():
            messages = orjson.loads(text)
            longest = max(longest, len(text.encode()) + MESSAGE_TOKENS * len(messages) + CONVERSATION_TOKENS)
            answers = [message["role"] == "assistant" for message in messages]
            one_answer = one_answer and answers.count(True) == 1 and answers[-1]
    return MixShape(longest, one_answer)


def snippet(manifest: Manifest, kind: SnippetKind, shape: MixShape) -> Snippet:
    """The config that makes a trainer read the mix's `train.jsonl`, which lies beside it, in its order."""
    n_epochs, size = manifest.order.epochs, manifest.order.batch_size
    fields: dict[str, Any] = {
        "title": f"Ballast mix {manifest.mix_id}",
        "short_id": manifest.mix_id[:12],
        "data": DATA_FILE,
        "n_rows": manifest.n_rows,
        "epochs": "one pass: " + (f"the file holds all {n_epochs} epochs" if n_epochs > 1 else "more would repeat it"),
        "length": shape.max_tokens,
        "why_length": "the longest has so many bytes and markers",
    }
    if kind == "datasets":
        batch = "" if size is None else f"\n# batches of {size} rows: the mix is ordered for them"
        return Snippet("load.py", {"load.py": _DATASETS.format(**fields, batch=batch)})
    if kind in ("trl", "unsloth"):
        batch = "" if size is None else f"\n    per_device_train_batch_size={size},  # times devices and accumulation"
        name = f"train_{kind}.py"
        text = _UNSLOTH.format(**fields, batch=batch) if kind == "unsloth" else _trl(fields, batch, shape)
        return Snippet(name, {name: text})
    if kind == "axolotl":
        batch = "" if size is None else f"micro_batch_size: {size}  # times devices and accumulation: the mix's batch\n"
        return Snippet("axolotl.yaml", {"axolotl.yaml": _AXOLOTL.format(**fields, batch=batch)})
    batch = "" if size is None else f"per_device_train_batch_size: {size}  # times devices and accumulation\n"
    text = _LLAMA_FACTORY.format(**fields, batch=batch)
    info = orjson.dumps(_DATASET_INFO, option=orjson.OPT_INDENT_2).decode() + "\n"
    return Snippet("llamafactory.yaml", {"llamafactory.yaml": text, "dataset_info.json": info})


def _trl(fields: dict[str, Any], batch: str, shape: MixShape) -> str:
    if shape.one_answer:
        own = {"imports": "", "rows": _TRL_ONE_ANSWER, "loss": "completion_only_loss=True,"}
    else:
        own = {"imports": _TRL_IMPORTS, "rows": _TRL_SEVERAL_ANSWERS, "loss": "assistant_only_loss=answers_alone,"}
    return _TRL.format(**fields, **own, batch=batch)


def write_snippet(store: Store, tenant: str, mix_id: str, kind: SnippetKind, out: Path) -> Snippet:
    """Write a mix's messages as `train.jsonl`, and its cards and the trainer's config beside it, the config last.

    Raises MissingError without such a mix, and BadInputError for rows that this trainer would train on otherwise
    than they were scored (nothing but the data file is then left).
    """
    manifest = read_manifest(store, tenant, mix_id)
    made = snippet(manifest, kind, mix_shape(store, tenant, mix_id))
    out.mkdir(parents=True, exist_ok=True)
    with atomic_write(out / DATA_FILE, durable=True) as temporary, temporary.open("wb") as file:
        file.writelines(_lines(store, tenant, mix_id, kind))
    write_cards(out / DATA_FILE, manifest)
    for name, text in made.files.items():
        (out / name).write_text(text, encoding="utf-8")
    return made


def _lines(store: Store, tenant: str, mix_id: str, kind: SnippetKind) -> Iterator[bytes]:
    done = 0
    for batch in mix_batches(store, tenant, mix_id, columns=["messages"]):
        for text in batch.column("messages").to_pylist():
            messages = orjson.loads(text)
            faults = [*(_fault(message, kind) for message in messages), _turns_fault(messages, kind)]
            if fault := next(filter(None, faults), None):
                raise BadInputError(
                    f"row {done} of mix {mix_id} has {fault}: train with trainer.sft, which keeps it, "
                    "or leave such rows out of the task file"
                )
            done += 1
            yield orjson.dumps({"messages": orjson.Fragment(text)}, option=orjson.OPT_APPEND_NEWLINE)


def _fault(message: dict[str, Any], kind: SnippetKind) -> str | None:
    if kind == "datasets":  # not a trainer: it reads every key
        return None
    if message.get("weight") == 0:
        return f"an answer of weight 0, which {kind} would train on"
    if kind == "llamafactory" and (message["role"] not in ("system", "user", "assistant") or "tool_calls" in message):
        return "a tool call or a role that llamafactory's ShareGPT form does not have"
    if kind == "llamafactory" and not isinstance(message.get("content"), str):
        return "a content that is not text, which llamafactory does not read"
    return None


def _turns_fault(messages: list[dict[str, Any]], kind: SnippetKind) -> str | None:
    """LLaMA-Factory drops a conversation, with a line in its log alone, unless questions and answers take turns."""
    if kind != "llamafactory":
        return None
    roles = [message["role"] for message in messages]
    turns = roles[1:] if roles[:1] == ["system"] else roles
    if len(turns) % 2 or any(role != ("user", "assistant")[at % 2] for at, role in enumerate(turns)):
        return f"turns that do not alternate ({', '.join(roles[:6])}), and llamafactory drops such a row"
    return None
