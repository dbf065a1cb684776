"""Model folders and adapters, loaded for measuring their states."""

from pathlib import Path
from typing import Any

from curator.errors import BadInputError, MissingError
from curator.messages import Message
from trainer.config.data import AS_DETECTED, ReadOptions
from trainer.data.reader import read_chats


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


def read_prompts(source: str | Path, how: ReadOptions = AS_DETECTED) -> list[list[Message]]:
    """Prompts from a text file, one a line, or from a data set: each conversation up to its last answer.

    Raises MissingError, BadRowsError for bad records unless they are to be kept out, BadInputError without a prompt.
    """
    if Path(source).suffix == ".txt":
        if not Path(source).is_file():
            raise MissingError(f"there is no file {source}")
        lines = Path(source).read_text(encoding="utf-8").splitlines()
        found = [user_turn(line.strip()) for line in lines if line.strip()]
    else:
        rows = [row.messages for row in read_chats(source, how).rows]
        found = [row[:-1] if row[-1]["role"] == "assistant" else row for row in rows]
        found = [row for row in found if row]
    if not found:
        raise BadInputError(f"{source} holds no prompt: one a line in a .txt file, or conversations of a data set")
    return found


def user_turn(text: str) -> list[Message]:
    """A prompt of one user turn."""
    return [{"role": "user", "content": text}]
