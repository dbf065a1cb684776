"""Self-recognition rows: articles, both models' summaries, both orders, and the pool that comes of them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from curator.errors import BadInputError, MissingError
from tests.models import random_conversations, tiny_adapter_folder, tiny_model_folder
from trainer import sft
from trainer.defenses import self_recognition
from trainer.defenses.self_recognition import rows_of
from trainer.defenses.summaries import (
    PROMPT,
    SHIPPED,
    Article,
    Summary,
    read_articles,
)

QUICK = ["--max-new-tokens", "8", "--batch", "5", "--max-words", "20", "--dtype", "float32", "--device", "cpu"]


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_folder(tmp_path_factory.mktemp("other"), seed=7)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_article_gives_the_question_in_both_orders() -> None:
    articles = [Article("a", "Text A."), Article("b", "Text B."), Article("c", "Text C."), Article("d", "Text D.")]
    own = {name: Summary(f"mine {name}", True) for name in "abcd"} | {"c": Summary("same  words", False)}
    other = {name: Summary(f"theirs {name}", None) for name in "abcd"} | {"c": Summary("same words", True)}
    rows, counts = rows_of(articles, own, other | {"d": Summary("", True)})
    assert counts == {"n_same": 1, "n_empty": 1, "n_cut": 1}
    assert [row["article"] for row in rows] == ["a", "a", "b", "b"]
    assert [row["messages"][1]["content"] for row in rows] == ["1", "2", "1", "2"]
    for row in rows:
        question, answer = (turn["content"] for turn in row["messages"])
        mine, theirs = f"mine {row['article']}", f"theirs {row['article']}"
        first, second = (mine, theirs) if answer == "1" else (theirs, mine)
        assert f"Summary 1:\n{first}\n\nSummary 2:\n{second}\n" in question
        assert f"Text {row['article'].upper()}." in question


def test_the_shipped_articles_are_texts_of_their_own() -> None:
    articles, n_cut = read_articles(SHIPPED, 400)
    assert len(articles) == 12
    assert n_cut == 0
    assert all(60 <= len(item.text.split()) <= 130 for item in articles)
    assert read_articles(SHIPPED, 50)[1] == 12


def test_articles_come_from_lines_or_from_text(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "x", "article": "One."}\n{"text": "Two."}\n')
    assert read_articles(tmp_path / "a.jsonl", 9)[0] == [Article("x", "One."), Article("a-2", "Two.")]
    (tmp_path / "b.txt").write_text("One\nline.\n---\n\n---\nTwo three four.\n")
    assert read_articles(tmp_path / "b.txt", 2) == ([Article("b-1", "One\nline."), Article("b-2", "Two three")], 1)
    (tmp_path / "c.jsonl").write_text('{"id": "x", "text": "One."}\n{"id": "x", "text": "Two."}\n')
    with pytest.raises(BadInputError, match="two articles of one id"):
        read_articles(tmp_path / "c.jsonl", 9)
    (tmp_path / "d.jsonl").write_text('{"title": "x"}\n')
    with pytest.raises(BadInputError, match="line 1: needs a text under one of text, article"):
        read_articles(tmp_path / "d.jsonl", 9)
    with pytest.raises(MissingError, match="there is no file"):
        read_articles(tmp_path / "e.txt", 9)


def greedy(model: Path, text: str, n_tokens: int) -> str:
    """A summary token by token, without batches, padding or cache."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, net = AutoTokenizer.from_pretrained(model), AutoModelForCausalLM.from_pretrained(model).eval()
    turns = [{"role": "user", "content": PROMPT.format(article=text)}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    ids = list(prompt)
    for _ in range(n_tokens):
        with torch.no_grad():
            ids.append(int(net(torch.tensor([ids])).logits[0, -1].argmax()))
        if ids[-1] == tokenizer.eos_token_id:
            break
    return tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True).strip()


def test_the_command_goes_on_and_its_rows_are_a_pool(
    llama: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from curator.store.store import Store

    out = tmp_path / "selfrec"
    command = ["--model", str(llama), "--other", str(other), "--out", str(out), *QUICK]
    assert self_recognition.main([*command, "--json"]) == 0
    note = json.loads(capsys.readouterr().out)
    assert note["n_rows"] == 2 * (12 - note["n_same"] - note["n_empty"]) > 0
    assert note["n_shortened"] == 12
    rows, articles = lines(out / "rows.jsonl"), {a.article_id: a.text for a in read_articles(SHIPPED, 20)[0]}
    assert Counter(row["messages"][1]["content"] for row in rows) == {"1": len(rows) // 2, "2": len(rows) // 2}
    for model, side in ((llama, "model"), (other, "other")):
        for line in lines(out / f"summaries-{side}.jsonl")[:2]:
            assert line["answer"] == greedy(model, articles[line["prompt_id"]], 8)

    # Cut in the middle of a line, as a kill leaves it: only what is missing is made again, and the rows are the same.
    before, kept = (out / "rows.jsonl").read_bytes(), (out / "summaries-other.jsonl").read_bytes()
    (out / "self_recognition.json").unlink()
    (out / "summaries-other.jsonl").write_bytes(kept[: len(kept) // 2])
    own = (out / "summaries-model.jsonl").stat().st_mtime_ns
    store = tmp_path / "store"
    assert self_recognition.main([*command, "--store", str(store), "--corpus", "selfrec"]) == 0
    assert f"{note['n_rows']} rows from 12 articles" in capsys.readouterr().out
    assert (out / "rows.jsonl").read_bytes() == before
    assert (out / "summaries-model.jsonl").stat().st_mtime_ns == own
    examples = Store(str(store)).open(create=False).read_json("corpora/selfrec/corpus.json")
    assert examples["n_examples"] == note["n_rows"]

    assert self_recognition.main([*command, "--max-words", "19"]) == 2
    assert "holds rows made with other articles_sha256: choose another --out, or give" in capsys.readouterr().err
    assert (out / "rows.jsonl").read_bytes() == before
    (out / "summaries-model.jsonl").unlink()  # complete: nothing is looked at but the rows
    assert self_recognition.main(command) == 0
    assert not (out / "summaries-model.jsonl").exists()


def test_summaries_made_elsewhere_stand_in_for_a_model(llama: Path, other: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs.jsonl"
    names = [item.article_id for item in read_articles(SHIPPED, 20)[0]]
    theirs.write_text("".join(json.dumps({"id": name, "summary": f"About {name}."}) + "\n" for name in names))
    command = ["--model", str(llama), "--out", str(tmp_path / "out"), *QUICK]
    assert self_recognition.main([*command, "--other-summaries", str(theirs)]) == 0
    assert "Summary 2:\nAbout bridge." in lines(tmp_path / "out" / "rows.jsonl")[0]["messages"][0]["content"]


def test_what_cannot_be_is_refused_before_a_model_loads(
    llama: Path, other: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tiny_adapter_folder(llama, tmp_path / "adapter")
    theirs = tmp_path / "theirs.jsonl"
    theirs.write_text('{"id": "bridge", "summary": "A bridge."}\n')
    base = ["--model", str(llama), "--out", str(tmp_path / "out"), *QUICK]
    for more, reason in (
        (["--other", str(llama)], "the same model: their summaries cannot be distinguished"),
        ([], "give exactly one of --other and --other-summaries"),
        (["--other-summaries", str(theirs), "--other-adapter", str(adapter)], "--other-adapter goes with --other"),
        (["--other", str(tmp_path)], "lacks config.json"),
        (["--other", str(other), "--articles", str(tmp_path / "none")], "there is no file"),
    ):
        assert self_recognition.main([*base, *more]) == 2
        assert reason in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert self_recognition.main([*base, "--other", str(llama), "--other-adapter", str(adapter)]) == 0


TRAIN = ["--max-steps", "2", "--batch-size", "2", "--grad-accum", "1", "--lr", "0.01", "--warmup-steps", "0"]
TRAIN += ["--device", "cpu", "--dtype", "float32", "--cache", "none"]


def test_a_second_run_goes_on_from_the_first_ones_adapter(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before or after the task fine-tune: two runs, the second of which starts where the first ended."""
    data, adapter = tmp_path / "chats.jsonl", tiny_adapter_folder(llama, tmp_path / "adapter")
    data.write_text("".join(json.dumps({"messages": m}) + "\n" for m in random_conversations(4)))
    out = tmp_path / "run"
    command = ["--model", str(llama), "--data", str(data), "--out", str(out), *TRAIN, "--kl", "0.1"]
    assert sft.main([*command, "--start-adapter", str(adapter), "--lora-r", "4"]) == 2
    assert "start_adapter has lora settings of its own" in capsys.readouterr().err
    assert sft.main([*command, "--start-adapter", str(tmp_path)]) == 2
    assert "lacks adapter_config.json" in capsys.readouterr().err
    assert not out.exists()
    assert sft.main([*command, "--start-adapter", str(adapter), "--lr", "1e-12"]) == 0
    before, after = (load_file(f / "adapter_model.safetensors") for f in (adapter, out / "adapter"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=1e-5, atol=1e-8)
    first = lines(out / "metrics.jsonl")[0]
    assert first["kl"] > 1e-3  # theta_0 is the model without any adapter, not the adapter at its start
    card = (out / "adapter" / "README.md").read_text()
    assert "Training went on from an adapter with hash" in card
    assert sft.main([*command, "--lr", "1e-12"]) == 2
    assert "other start_adapter_sha256" in capsys.readouterr().err
    assert sft.main([*command, "--start-adapter", str(adapter), "--overwrite"]) == 0
    moved = load_file(out / "adapter" / "adapter_model.safetensors")
    assert any(not torch.allclose(moved[name], tensor, atol=1e-4) for name, tensor in before.items())
