"""The toy model's tokenizer and chat template, which the product's own renderer, scorer and trainer read."""

import json
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers

from curator.messages import Message
from trainer.experiments.toy.world import PAD, START, START_LEN, Ints, World

# One word is one token; turns need no markers, because a question opens with its domain.
TEMPLATE = "<start> {% for message in messages %}{{ message['content'] }}{{ ' ' }}{% endfor %}"


def write_tokenizer(world: World, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json and chat_template.jinja in a model folder."""
    vocabulary = {word: index for index, word in enumerate(world.words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, "bos_token": "<start>",
        "pad_token": "<pad>", "unk_token": "<unk>",
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")


def conversation(world: World, row: Ints) -> list[Message]:
    """One row of token ids, question and answer, as messages."""
    *question, answer = (world.words[token] for token in row[START_LEN:].tolist())
    return [{"role": "user", "content": " ".join(question)}, {"role": "assistant", "content": answer}]


def text_of_turns(world: World, tokens: Ints) -> str:
    """Token ids of turns (World.turns) as the text of one message, such as a system prompt."""
    return " ".join(world.words[token] for token in tokens.tolist())


def tokens_of(world: World, rows: Sequence[Sequence[Message]]) -> Ints:
    """Conversations as rows of token ids, (N, T), as the template renders them, padded at their end."""
    place = {word: index for index, word in enumerate(world.words)}
    texts = (" ".join(str(turn["content"]) for turn in turns).split() for turns in rows)
    found = [[START, *(place[word] for word in words)] for words in texts]
    return np.array(list(zip_longest(*found, fillvalue=PAD)), dtype=np.int64).T
