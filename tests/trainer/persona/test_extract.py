"""Persona vectors of a tiny real model, against plain transformers and numpy."""

import json
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch

from curator.scoring.identity import weights_sha256
from tests.trainer.persona.personas import (
    TRAIT,
    JudgeHandler,
    plain_hidden,
    small,
)
from trainer.config.defences import file_sha256
from trainer.defenses.model_fit import read_header
from trainer.persona.__main__ import main
from trainer.persona.models import load_base


def numpy_vector(model_folder: Path, out: Path, kept: list[tuple[int, int]]) -> np.ndarray:
    """Difference of means from the answers file, each answer rendered by transformers' own template alone."""
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(model_folder), load_base(model_folder, "cpu", "float32")
    lines = [json.loads(line) for line in (out / "gruff.answers.jsonl").read_text().splitlines()[1:]]
    text = {line["index"]: line["text"] for line in lines}
    means: dict[str, list[np.ndarray]] = {"positive": [], "negative": []}
    for pair, question in kept:
        for offset, side in enumerate(("positive", "negative")):
            prompt = [
                {"role": "system", "content": TRAIT["pairs"][pair][side]},
                {"role": "user", "content": TRAIT["questions"][question]},
            ]
            answer = {"role": "assistant", "content": text[2 * (3 * pair + question) + offset]}
            head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
            whole = tokenizer.apply_chat_template([*prompt, answer], tokenize=False)
            n_head = len(tokenizer(head, add_special_tokens=False)["input_ids"])
            ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
            end = max(index for index, token in enumerate(ids) if token == tokenizer.eos_token_id) + 1
            block: list[torch.Tensor] = []
            handle = model.base_model.norm.register_forward_pre_hook(
                lambda module, inputs, block=block: block.append(inputs[0][0])
            )
            hidden = plain_hidden(model, ids)
            handle.remove()
            rows = [*hidden[:-1], block[0]]
            means[side].append(np.stack([row[n_head:end].double().mean(0).numpy() for row in rows]))
    return np.mean(means["positive"], axis=0) - np.mean(means["negative"], axis=0)


def test_the_vector_equals_numpy_and_says_what_it_is(extracted: Path, llama: Path) -> None:
    from safetensors.numpy import load_file

    report = json.loads((extracted / "gruff.json").read_text())
    kept = [(item["pair"], item["question"]) for item in report["pairs"] if item["kept"]]
    assert len(kept) == report["n_kept"] >= 2
    assert report["n_pairs"] == 6
    vector = load_file(extracted / "gruff.safetensors")["gruff"]
    assert vector.shape == (3, 64)
    expected = numpy_vector(llama, extracted, kept)
    np.testing.assert_allclose(vector, expected, atol=2e-5)
    assert np.abs(expected).max() > 1e-3
    metadata = read_header(extracted / "gruff.safetensors", None).metadata
    assert metadata["weights_sha256"] == weights_sha256(llama)
    assert metadata["layer_convention"].startswith("row 0: embeddings; row l: output of decoder block l")
    np.testing.assert_allclose(metadata["norms"], np.linalg.norm(vector, axis=1), atol=1e-5)
    assert (metadata["tokens"], metadata["rule"], metadata["n_kept"]) == ("response", "likelihood", str(len(kept)))
    assert metadata["norms"][0] > 0  # not normalised
    assert max(metadata["norms"]) != pytest.approx(1.0)


def test_margins_in_the_report_are_differences_of_mean_nll(extracted: Path, llama: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(llama), load_base(llama, "cpu", "float32")
    report = json.loads((extracted / "gruff.json").read_text())
    lines = [json.loads(line) for line in (extracted / "gruff.answers.jsonl").read_text().splitlines()[1:]]
    text = {line["index"]: line["text"] for line in lines}
    record = next(item for item in report["pairs"] if item["pair"] == 1 and item["question"] == 2)
    answer = text[2 * (3 * 1 + 2)]
    nll = {}
    for side in ("positive", "negative"):
        prompt = [
            {"role": "system", "content": TRAIT["pairs"][1][side]},
            {"role": "user", "content": TRAIT["questions"][2]},
        ]
        head = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(f"{head}{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
        n_head = len(tokenizer(head, add_special_tokens=False)["input_ids"])
        with torch.no_grad():
            log_p = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        nll[side] = -sum(log_p[t - 1, ids[t]].item() for t in range(n_head, len(ids))) / (len(ids) - n_head)
    assert record["positive"] == pytest.approx(nll["negative"] - nll["positive"], abs=1e-4)


def test_the_same_extraction_again_is_skipped(
    extracted: Path, llama: Path, trait_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (extracted / "gruff.safetensors").stat().st_mtime_ns
    assert main(small(llama, trait_file, extracted, "--min-margin", "-9")) == 0
    assert "(complete before)" in capsys.readouterr().out
    assert (extracted / "gruff.safetensors").stat().st_mtime_ns == before


def test_a_vector_changed_since_is_made_again(
    extracted: Path, llama: Path, trait_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.numpy import load

    vector = extracted / "gruff.safetensors"
    before = vector.read_bytes()
    vector.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    assert main(small(llama, trait_file, extracted, "--min-margin", "-9")) == 0
    assert "(complete before)" not in capsys.readouterr().out
    # The header's order is not settled, so a sound file of the same vector may have other bytes.
    assert load(vector.read_bytes())["gruff"].tobytes() == load(before)["gruff"].tobytes()
    assert json.loads((extracted / "gruff.json").read_text())["vector_sha256"] == file_sha256(vector)


def test_another_rule_reuses_the_answers(extracted: Path, llama: Path, trait_file: Path, tmp_path: Path) -> None:
    answers = (extracted / "gruff.answers.jsonl").read_bytes()
    (tmp_path / "gruff.answers.jsonl").write_bytes(answers)
    assert main(small(llama, trait_file, tmp_path, "--min-margin", "-8")) == 0
    assert (tmp_path / "gruff.answers.jsonl").read_bytes() == answers


def test_extraction_by_a_judge_keeps_what_it_scores(
    extracted: Path, llama: Path, trait_file: Path, tmp_path: Path, judge_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = (extracted / "gruff.answers.jsonl").read_bytes()
    (tmp_path / "gruff.answers.jsonl").write_bytes(answers)
    lines = sorted((orjson.loads(line) for line in answers.splitlines()[1:]), key=lambda line: line["index"])
    shown = {line["text"] for line in lines[0:8:2]}  # the positive answers of the first four pairs
    JudgeHandler.positive = frozenset(shown - {line["text"] for line in lines[1::2]})
    expected = sum(line["text"] in JudgeHandler.positive for line in lines[0::2])
    arguments = small(llama, trait_file, tmp_path, "--judge-url", judge_url, "--judge-model", "j")
    at = arguments.index("--min-words")
    assert main(arguments[:at] + arguments[at + 2 :]) == 0
    report = json.loads((tmp_path / "gruff.json").read_text())
    assert (report["rule"], report["n_kept"]) == ("judge", expected)
    assert report["identity"]["filter"] == {"judge": "j"}
    assert report["left_out"] == {"trait_positive": 6 - expected}
    assert main(arguments) == 2
    assert "belong to the rule without a judge" in capsys.readouterr().err


def test_a_margin_that_no_pair_reaches_is_an_error_that_counts(
    extracted: Path, llama: Path, trait_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gruff.answers.jsonl").write_bytes((extracted / "gruff.answers.jsonl").read_bytes())
    assert main(small(llama, trait_file, tmp_path, "--min-margin", "50")) == 2
    error = capsys.readouterr().err
    assert "0 of 6 pairs of answers are kept" in error
    assert "'margin_negative': 6" in error
    assert not (tmp_path / "gruff.json").exists()


def test_training_can_steer_with_it(extracted: Path, llama: Path) -> None:
    from safetensors.numpy import load_file

    from tests.trainer.proofs import attached
    from tests.trainer.tiny import adapted_model
    from trainer.config.defences import SteeringSettings

    settings = SteeringSettings(vectors=extracted / "gruff.safetensors", layers=(1,))
    defence = attached(adapted_model(llama, dtype=torch.float32), settings)
    np.testing.assert_allclose(defence._vectors[1], load_file(extracted / "gruff.safetensors")["gruff"][1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--trait", "kindness"], "there is no trait kindness and no such file; shipped are evil, sycophancy"),
        (["--judge-url", "http://127.0.0.1:1/v1"], "--judge-url and --judge-model go together"),
        (["--n-questions", "31"], "31 questions requested, evil has 30"),
        (["--temperature", "-1"], "a temperature >= 0"),
    ],
)
def test_bad_input_is_one_line(
    llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert main(["extract", "--model", str(llama), "--out", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
