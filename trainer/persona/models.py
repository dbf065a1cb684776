"""Model folders and adapters, loaded for measuring their states."""

from pathlib import Path
from typing import Any

from curator.corpus.formats import Reject, read_rows
from curator.errors import BadInputError, MissingError
from curator.messages import Message


def load_base(folder: Path, device: str = "auto", dtype: str = "auto") -> Any:
    """The causal LM of a folder, frozen, in evaluation mode."""
    from curator.scoring.engines.torch_model import load_model, resolve_device, resolve_dtype

    place = resolve_device(device)
    return load_model(folder, place, resolve_dtype(dtype, place))


def with_adapter(model: Any, adapter: Path) -> Any:
    """The model with a LoRA adapter on, as a PeftModel; raises BadInputError when it does not fit."""
    from curator.scoring.engines import torch_model

    return torch_model.with_adapter(model, adapter).eval().requires_grad_(False)


def shape_of(model: Any) -> tuple[int, int]:
    """Decoder blocks and width."""
    from trainer.defenses.blocks import decoder_blocks

    return len(decoder_blocks(model)), int(model.config.get_text_config().hidden_size)


def read_prompts(path: Path) -> list[list[Message]]:
    """Prompts from a text file, one a line, or from a chat file: each conversation up to its last answer.

    Raises MissingError, or BadInputError when there is none.
    """
    if not path.is_file():
        raise MissingError(f"there is no file {path}")
    if path.suffix == ".txt":
        found = [user_turn(line.strip()) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    else:
        rows = [row.messages for row in read_rows(path) if not isinstance(row, Reject)]
        found = [row[:-1] if row[-1]["role"] == "assistant" else row for row in rows]
        found = [row for row in found if row]
    if not found:
        raise BadInputError(f"{path} holds no prompt: one a line in a .txt file, or conversations in a chat file")
    return found


def user_turn(text: str) -> list[Message]:
    """A prompt of one user turn."""
    return [{"role": "user", "content": text}]
