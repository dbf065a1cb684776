"""What decides the token ids of a conversation, read from a model folder."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from curator.errors import BadInputError, RenderError

SPECIAL_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True)
class RendererFiles:
    """A tokenizer document, a chat template, and the special tokens by name."""

    tokenizer: dict[str, Any]
    chat_template: str
    special_tokens: dict[str, str]


def read_folder(path: Path, chat_template: str | None = None) -> RendererFiles:
    """The renderer's files from a Hugging Face model folder; `chat_template` overrides the folder's own.

    Raises RenderError when the folder has no tokenizer.json or no chat template.
    """
    tokenizer_path = path / "tokenizer.json"
    if not tokenizer_path.is_file():
        raise RenderError(f"{path} has no tokenizer.json (slow tokenizers are not read)", reason="bad_tokenizer")
    config = _read_json(path / "tokenizer_config.json")
    legacy = _read_json(path / "special_tokens_map.json")
    specials: dict[str, str] = {}
    for name in SPECIAL_NAMES:
        text = _token_text(config.get(name)) or _token_text(legacy.get(name))
        if text is not None:
            specials[name] = text
    extra = config.get("extra_special_tokens")
    if isinstance(extra, dict):  # model-specific names such as image_token; templates may print them
        specials |= {name: text for name, value in sorted(extra.items()) if (text := _token_text(value))}
    if "added_tokens_decoder" not in config:  # transformers reads the older file only then
        config = {**legacy, **config, "added_tokens_json": _read_json(path / "added_tokens.json")}
    document = _normalised(_read_json(tokenizer_path), config, specials)
    return RendererFiles(document, chat_template or _find_template(path, config), specials)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        # json, not orjson: tokenizer_config.json may hold integers above 64 bits (model_max_length).
        document = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RenderError(f"{path} is not JSON: {error}", reason="bad_tokenizer") from error
    if not isinstance(document, dict):
        raise RenderError(f"{path} is not a JSON object", reason="bad_tokenizer")
    return document


def _token_text(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _find_template(path: Path, config: Mapping[str, Any]) -> str:
    own_file = path / "chat_template.jinja"
    if own_file.is_file():
        try:
            return own_file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RenderError(f"{own_file} is not UTF-8: {error}", reason="bad_template") from error
    # The older file of processors counts where the tokenizer has no template of its own, as in transformers.
    found = config.get("chat_template") or _read_json(path / "chat_template.json").get("chat_template")
    if isinstance(found, list):  # several named templates: [{"name": ..., "template": ...}]
        found = {item.get("name"): item.get("template") for item in found}.get("default")
    if not isinstance(found, str):
        raise RenderError(
            f"{path} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json); "
            "use an instruct model, or put a chat_template.jinja into the folder",
            reason="no_template",
        )
    return found


def _normalised(document: dict[str, Any], config: Mapping[str, Any], specials: Mapping[str, str]) -> dict[str, Any]:
    """The tokenizer document without run-time state, and with the added tokens that only the config names."""
    if not isinstance(document.get("model"), dict) or "vocab" not in document["model"]:
        raise RenderError("tokenizer.json has no model with a vocabulary", reason="bad_tokenizer")
    added = {item["content"]: dict(item) for item in document.get("added_tokens") or []}
    for item in _config_tokens(document, config, specials, added):
        known = added.setdefault(item["content"], item)
        known["special"] = known["special"] or item["special"]
    # Truncation and padding are settings of one past call. The post-processor adds what the template has
    # already written (a second BOS) and trims offsets.
    state = {"truncation": None, "padding": None, "post_processor": None}
    return {**document, **state, "added_tokens": sorted(added.values(), key=lambda item: int(item["id"]))}


def _config_tokens(
    document: Mapping[str, Any],
    config: Mapping[str, Any],
    specials: Mapping[str, str],
    added: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    decoder = config.get("added_tokens_decoder") or {}
    for token_id, item in decoder.items():
        known = {key: item[key] for key in ("content", *flags) if key in item}
        yield {"id": int(token_id), **flags, **known}
    yield from _older_tokens(document, config, specials, added)
    pieces = _pieces(document)
    for text in specials.values():
        if text in added:
            yield {**added[text], "special": True}
        elif text in pieces:
            yield {"id": pieces[text], "content": text, **flags, "special": True}


def _pieces(document: Mapping[str, Any]) -> dict[str, int]:
    vocab = document["model"]["vocab"]
    return vocab if isinstance(vocab, dict) else {piece: index for index, (piece, _) in enumerate(vocab)}


def _older_tokens(
    document: Mapping[str, Any],
    config: Mapping[str, Any],
    specials: Mapping[str, str],
    added: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    """Tokens of added_tokens.json that tokenizer.json lacks, with the ids that transformers gives them.

    That is the id of the vocabulary, else the next free one in the file's order of ids: what the file says is but an
    order. Where tokenizer.json has an added token under an id, the file's token of that id is none.
    """
    pieces = _pieces(document)
    names = ("extra_special_tokens", "additional_special_tokens")
    further = [item for name in names if isinstance(config.get(name), list) for item in config[name]]
    special = {*specials.values(), *(text for item in further if (text := _token_text(item)))}
    free = max([len(pieces), *(int(item["id"]) + 1 for item in added.values())])
    taken = {int(item["id"]) for item in document.get("added_tokens") or []}
    listed = {int(index): text for text, index in config.get("added_tokens_json", {}).items()}
    for index, text in sorted(listed.items()):
        if text in added or index in taken:
            continue
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": text not in special}
        yield {"id": pieces.get(text, free), "content": text, **flags, "special": text in special}
        free += text not in pieces


def canonical_bytes(document: Any) -> bytes:
    """JSON with sorted keys: the same bytes for the same content."""
    return orjson.dumps(document, option=orjson.OPT_SORT_KEYS)


def check_vocabulary(path: Path, n_rows: int) -> None:
    """Raise BadInputError when the tokenizer of a folder gives ids that an embedding of `n_rows` rows lacks.

    Control tokens that neither the template nor the roles of the tokenizer (end of text, padding, ...) name may be
    beyond it: no text becomes one of them here (Gemma 3 has such a token for images).
    """
    files = None
    for template in (None, " "):  # a folder without a template has a vocabulary too
        with suppress(RenderError):  # one that cannot be read is refused where rows are rendered
            files = files or read_folder(path, template)
    if files is None:
        return
    vocab = files.tokenizer["model"]["vocab"]
    pieces = vocab.items() if isinstance(vocab, dict) else ((piece, id_) for id_, (piece, _) in enumerate(vocab))
    named = {files.special_tokens.get(name) for name in SPECIAL_NAMES}
    added = files.tokenizer["added_tokens"]
    unreachable = {
        item["content"]
        for item in added
        if item["special"] and item["content"] not in named and item["content"] not in files.chat_template
    }
    ids = {**dict(pieces), **{item["content"]: int(item["id"]) for item in added}}
    beyond = sorted((id_, text) for text, id_ in ids.items() if id_ >= n_rows and text not in unreachable)
    if beyond:
        raise BadInputError(
            f"the tokenizer of {path} has ids up to {beyond[-1][0]} ({beyond[-1][1]!r}), the embedding has {n_rows} "
            "rows: it is another model's tokenizer, or a token was added without model.resize_token_embeddings",
            details=[text for _, text in beyond[:20]],
        )
