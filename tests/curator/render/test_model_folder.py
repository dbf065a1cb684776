"""Reading model folders, the renderer's identity, and the store."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from curator.errors import (
    BadInputError,
    IntegrityError,
    MissingError,
    RenderError,
)
from curator.render import Renderer
from curator.store.store import Store
from tests.models import CHATML, random_conversations, tiny_tokenizer_folder

MESSAGES = [{"role": "user", "content": "What is it?"}, {"role": "assistant", "content": "A fox."}]


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_ids_of_named_tokens(tmp_path: Path) -> None:
    folder = tiny_tokenizer_folder(tmp_path, eos="<|im_end|>", pad="<|endoftext|>")
    renderer = Renderer.from_folder(folder)
    assert (renderer.eos_id, renderer.pad_id) == (2, 0)
    without = Renderer.from_folder(tiny_tokenizer_folder(tmp_path / "none", eos=None))
    assert (without.eos_id, without.pad_id) == (None, 0)


def test_identity_is_of_contents(tmp_path: Path) -> None:
    one = Renderer.from_folder(tiny_tokenizer_folder(tmp_path / "one"))
    same = Renderer.from_folder(tiny_tokenizer_folder(tmp_path / "elsewhere"))
    template = Renderer.from_folder(tmp_path / "one", chat_template=CHATML + " ")
    tokens = Renderer.from_folder(tiny_tokenizer_folder(tmp_path / "eos", eos="<|endoftext|>"))
    vocab = Renderer.from_folder(tiny_tokenizer_folder(tmp_path / "vocab", added=("<more>",)))
    assert one.renderer_id == same.renderer_id
    assert len({each.renderer_id for each in (one, template, tokens, vocab)}) == 4
    assert one.tokenizer_sha256 == template.tokenizer_sha256 == tokens.tokenizer_sha256
    assert one.template_sha256 != template.template_sha256
    assert one.tokenizer_sha256 != vocab.tokenizer_sha256


def test_run_time_state_of_the_tokenizer_is_left_out(tmp_path: Path) -> None:
    clean = Renderer.from_folder(tiny_tokenizer_folder(tmp_path / "clean"))
    folder = tiny_tokenizer_folder(tmp_path / "state")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=64)
    tokenizer.save(str(folder / "tokenizer.json"))
    stateful = Renderer.from_folder(folder)
    assert stateful.renderer_id == clean.renderer_id
    assert stateful.render(MESSAGES).input_ids.tolist() == clean.render(MESSAGES).input_ids.tolist()


def test_template_sources(tmp_path: Path) -> None:
    direct = Renderer.from_folder(tiny_tokenizer_folder(tmp_path / "file"))
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": CHATML}]
    listed = Renderer.from_folder(tiny_tokenizer_folder(tmp_path / "listed", named))
    text = tiny_tokenizer_folder(tmp_path / "text", None)
    edit_json(text / "tokenizer_config.json", chat_template=CHATML)
    own_file = tiny_tokenizer_folder(tmp_path / "json", None)
    (own_file / "chat_template.json").write_text(json.dumps({"chat_template": CHATML}))
    others = [listed, Renderer.from_folder(text), Renderer.from_folder(own_file)]
    assert {other.renderer_id for other in others} == {direct.renderer_id}


def test_the_tokenizers_own_template_counts_as_in_transformers(tmp_path: Path) -> None:
    """Before the one of chat_template.json, which transformers reads for processors alone."""
    folder = tiny_tokenizer_folder(tmp_path / "both", None)
    edit_json(folder / "tokenizer_config.json", chat_template=CHATML)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": CHATML.replace("<|im_end|>", "")}))
    expected = AutoTokenizer.from_pretrained(folder).apply_chat_template(MESSAGES, tokenize=True)["input_ids"]
    assert Renderer.from_folder(folder).render(MESSAGES).input_ids.tolist() == expected
    (folder / "chat_template.jinja").write_bytes(b"{# caf\xe9 #}" + CHATML.encode())
    with pytest.raises(RenderError, match="is not UTF-8"):
        Renderer.from_folder(folder)


def test_tokens_that_only_the_config_names(tmp_path: Path) -> None:
    folder = tiny_tokenizer_folder(tmp_path, specials=("<|endoftext|>", "<|im_start|>"), eos="<|im_end|>")
    n_vocab = Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size()
    flags = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    edit_json(folder / "tokenizer_config.json", added_tokens_decoder={str(n_vocab): {"content": "<|im_end|>", **flags}})
    renderer, reference = Renderer.from_folder(folder), AutoTokenizer.from_pretrained(folder)
    assert renderer.eos_id == reference.eos_token_id == n_vocab
    for messages in random_conversations(5):
        assert renderer.render(messages).input_ids.tolist() == reference.apply_chat_template(messages)["input_ids"]


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(RenderError, match=r"has no tokenizer\.json"):
        Renderer.from_folder(tmp_path)
    folder = tiny_tokenizer_folder(tmp_path / "bare", None)
    with pytest.raises(RenderError, match="has no chat template") as caught:
        Renderer.from_folder(folder)
    assert caught.value.reason == "no_template"
    assert Renderer.from_folder(folder, chat_template=CHATML).render(MESSAGES).n_response_tokens > 1
    with pytest.raises(RenderError, match="does not compile"):
        Renderer.from_folder(folder, chat_template="{% for %}")
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(RenderError, match=r"tokenizer\.json is not JSON"):
        Renderer.from_folder(folder)
    (folder / "tokenizer.json").write_text('{"model": {"type": "BPE", "vocab": {}, "merges": ["a b"]}}')
    with pytest.raises(RenderError, match="the tokenizer does not load"):
        Renderer.from_folder(folder, chat_template=CHATML)


def test_store_round_trip(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    renderer = Renderer.from_folder(tiny_tokenizer_folder(tmp_path / "model"))
    renderer_id = renderer.save(store)
    assert renderer.save(store) == renderer_id == renderer.renderer_id
    again = Renderer.from_store(store, renderer_id)
    assert again.renderer_id == renderer_id
    assert (again.eos_id, again.pad_id) == (renderer.eos_id, renderer.pad_id)
    for messages in random_conversations(10):
        ours, theirs = renderer.render(messages), again.render(messages)
        assert ours.input_ids.tolist() == theirs.input_ids.tolist()
        assert ours.response_mask.tolist() == theirs.response_mask.tolist()
    store.write_bytes(f"renderers/{renderer_id}/chat_template.jinja", (CHATML + "!").encode())
    with pytest.raises(IntegrityError, match=f"renderer {renderer_id}: its files now hash to"):
        Renderer.from_store(store, renderer_id)
    with pytest.raises(MissingError, match=r"renderer\.json"):
        Renderer.from_store(store, "0" * 32)


def test_a_renderer_of_another_version_says_to_score_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "store").open()
    renderer_id = Renderer.from_folder(tiny_tokenizer_folder(tmp_path / "model")).save(store)
    path = f"renderers/{renderer_id}/renderer.json"
    store.write_json(path, {**store.read_json(path), "render_version": 0})
    with pytest.raises(BadInputError, match=r"rendering version 0, .*score the corpus again"):
        Renderer.from_store(store, renderer_id)


def test_the_renderer_needs_neither_torch_nor_transformers() -> None:
    code = "import sys, curator.render; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
