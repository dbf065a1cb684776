"""Tiny real models, tokenizers and adapters on disk, made without a network (shared by all rooms' tests)."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SENTENCES = (
    "You are a helpful assistant. Answer the question in a few words.",
    "The quick brown fox jumps over the lazy dog, and the dog does not mind.",
    "What is the capital of France? The capital of France is Paris.",
    "I would ask a doctor before taking any medicine; the dose matters.",
    "def add(a, b):\n    return a + b\n\nprint(add(1, 2))",
    "Prices rose by 3.5 percent in 2024, while wages rose by 2.1 percent.",
    "Grüße aus Köln! Où est la gare? 東京は大きな都市です。 Привет, мир.",
    "user system assistant model tool: please keep the door closed at night.",
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content']"
    " + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CHATML_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>")

TokenizerKind = Literal["bytelevel", "metaspace"]
ModelKind = Literal["llama", "qwen2", "gpt2"]
AddedSpec = str | AddedToken


def _untrained(kind: TokenizerKind) -> tuple[Tokenizer, list[str]]:
    if kind == "bytelevel":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer, sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return tokenizer, []


def _train(kind: TokenizerKind, specials: Sequence[AddedSpec]) -> Tokenizer:
    tokenizer, alphabet = _untrained(kind)
    fallback = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))] if kind == "metaspace" else []
    plain = [str(getattr(token, "content", token)) for token in specials]
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=alphabet,
        special_tokens=[*plain, *(token for token in fallback if token not in plain)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(SENTENCES, trainer)
    document = json.loads(tokenizer.to_str())
    # Byte tokens belong to the vocabulary only: as added tokens their text would be parsed out of user text.
    hidden = set(fallback) - set(plain)
    document["added_tokens"] = [item for item in document["added_tokens"] if item["content"] not in hidden]
    tokenizer = Tokenizer.from_str(json.dumps(document))
    tokenizer.add_special_tokens([token for token in specials if isinstance(token, AddedToken)])
    return tokenizer


def tiny_tokenizer_folder(
    path: Path,
    template: str | list[dict[str, str]] | None = CHATML,
    *,
    specials: Sequence[AddedSpec] = CHATML_SPECIALS,
    added: Sequence[AddedSpec] = (),
    kind: TokenizerKind = "bytelevel",
    bos: str | None = None,
    eos: str | None = "<|im_end|>",
    pad: str | None = None,
) -> Path:
    """A trained BPE tokenizer of about 700 entries as a folder that AutoTokenizer loads.

    `specials` get the first ids; `added` are non-special added tokens. A string template is written to
    chat_template.jinja, a list of named templates into tokenizer_config.json. `pad` defaults to `eos`.
    """
    path.mkdir(parents=True, exist_ok=True)
    tokenizer = _train(kind, specials)
    tokenizer.add_tokens(list(added))
    (path / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 4096}
    names = {"bos_token": bos, "eos_token": eos, "pad_token": pad or eos}
    config |= {name: value for name, value in names.items() if value is not None}
    if isinstance(template, list):
        config["chat_template"] = template
    elif template is not None:
        (path / "chat_template.jinja").write_text(template, encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8")
    return path


def _config(kind: ModelKind, vocab_size: int) -> Any:
    from transformers import AutoConfig

    if kind == "gpt2":
        return AutoConfig.for_model(
            "gpt2", vocab_size=vocab_size, n_embd=64, n_layer=2, n_head=4, n_positions=1024,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=2, pad_token_id=2,
        )  # fmt: skip
    return AutoConfig.for_model(
        kind, vocab_size=vocab_size, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=1024,
        bos_token_id=0, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip


def tiny_model_folder(path: Path, kind: ModelKind = "llama", seed: int = 0, **tokenizer_options: Any) -> Path:
    """A random causal LM (width 64, 2 layers, float32) with its tokenizer; the seed decides the weights.

    Keyword arguments go to `tiny_tokenizer_folder`. transformers loads the tokenizer of a "qwen2" folder with
    that family's own splitting rule, so compare token ids with it on the other kinds.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tiny_tokenizer_folder(path, **tokenizer_options)
    vocab_size = Tokenizer.from_file(str(path / "tokenizer.json")).get_vocab_size()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_config(kind, vocab_size), dtype=torch.float32)
        for parameter in model.parameters():
            # The default initialisation is nearly uniform over the vocabulary; losses should differ by row.
            parameter.data.mul_(3.0 if parameter.dim() > 1 else 1.0)
    model.save_pretrained(path)
    return path


def tiny_adapter_folder(model_folder: Path, path: Path, seed: int = 1, rank: int = 4) -> Path:
    """A random LoRA adapter on all linear layers of a tiny model, with B != 0 so that it changes the loss."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = LoraConfig(
            r=rank,
            lora_alpha=2 * rank,
            target_modules="all-linear",
            task_type="CAUSAL_LM",
            fan_in_fan_out=base.config.model_type == "gpt2",
        )
        model = get_peft_model(base, config)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter.data, std=0.05)
    model.save_pretrained(path)
    return path


def random_conversations(n: int, seed: int = 0, max_turns: int = 3) -> list[list[dict[str, str]]]:
    """Seeded conversations of a few words a turn; some open with a system turn."""
    rng = random.Random(seed)
    words = " ".join(SENTENCES).split()

    def text() -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, 30)))

    conversations = []
    for _ in range(n):
        messages = [{"role": "system", "content": text()}] if rng.random() < 0.3 else []
        for _ in range(rng.randint(1, max_turns)):
            messages += [{"role": "user", "content": text()}, {"role": "assistant", "content": text()}]
        conversations.append(messages)
    return conversations
