"""The command from options to the run folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from curator.mix.build import build_mix
from curator.scoring.identity import adapter_sha256, weights_sha256
from tests.mix_stores import recipe, scored_store, task_set
from tests.models import tiny_model_folder
from tests.trainer.sftruns import SMALL, argv, document
from trainer import sft
from trainer.config.data import ReadOptions
from trainer.evaluate import nll


@pytest.fixture(scope="module")
def finished(llama: Path, chats: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of four steps with KL."""
    out = tmp_path_factory.mktemp("runs") / "kl"
    assert sft.main(argv(llama, chats, out)) == 0
    return out


def test_a_run_leaves_its_whole_folder(finished: Path, llama: Path) -> None:
    names = {item.name for item in finished.iterdir()}
    assert names == {"config.json", "metrics.jsonl", "report.json", "report.md", "loss.png", "terms.png", "adapter"}
    lines = [json.loads(line) for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert [line["rows"] for line in lines] == [8, 4, 8, 4]
    for line in lines:
        assert line["loss"] == pytest.approx(line["sft_loss"] + 0.1 * line["kl"])
        assert line["tokens"] < line["total_tokens"]
    assert lines[0]["lr"] == 0.0
    assert lines[1]["lr"] == pytest.approx(0.01)
    assert lines[0]["kl"] == 0.0 < lines[-1]["kl"]
    assert lines[-1]["loss"] < lines[0]["loss"]
    report = document(finished / "report.json")
    assert report["loss"]["first"] == lines[0]["loss"]
    assert report["loss"]["last"] == lines[-1]["loss"]
    assert report["tokens"] == sum(line["tokens"] for line in lines)
    assert report["rows_trained"] == 24
    assert report["adapter_sha256"] == adapter_sha256(finished / "adapter")
    for name in report["files"].values():
        assert (finished / name).exists()
    assert (finished / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert "| kl | 0." in (finished / "report.md").read_text()


def test_config_json_records_everything_resolved(finished: Path, llama: Path) -> None:
    record = document(finished / "config.json")
    assert record["config"]["lora"]["targets"][0] == "q_proj"
    [defence] = record["config"]["defences"]
    assert defence.items() >= {"name": "kl", "weight": 0.1, "direction": "student_reference", "tokens": "all"}.items()
    assert record["resolved"]["steps"] == 4
    assert record["resolved"]["effective_batch"] == 8
    assert record["resolved"]["dtype"] in ("float32", "bfloat16")
    assert record["weights_sha256"] == weights_sha256(llama)
    assert record["environment"]["packages"]["trl"]
    assert record["content"]["n_rows"] == 12
    marker = document(finished / "adapter" / "ballast.json")
    assert marker["complete"] is True
    assert marker["base_weights_sha256"] == weights_sha256(llama)
    assert marker["defences"] == record["config"]["defences"]
    assert str(llama.parent) not in (finished / "adapter" / "README.md").read_text()


def test_the_same_run_again_is_skipped(
    finished: Path, llama: Path, chats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (finished / "report.json").stat().st_mtime_ns
    assert sft.main(argv(llama, chats, finished)) == 0
    assert "complete (4 steps); --overwrite trains again" in capsys.readouterr().out
    assert sft.main(argv(llama, chats, finished, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 4
    assert (finished / "report.json").stat().st_mtime_ns == before


def test_another_chat_template_is_another_run(
    finished: Path, llama: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = Path(shutil.copytree(llama, tmp_path / "changed"))
    template = changed / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|im_start|> ", 1))
    assert sft.main(argv(changed, chats, finished)) == 2
    assert "renderer_id" in capsys.readouterr().err


def test_another_run_needs_another_folder_or_overwrite(
    finished: Path, llama: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sft.main(argv(llama, chats, finished, "--seed", "1")) == 2
    assert "holds a complete run with other seed" in capsys.readouterr().err
    other = tmp_path / "other.jsonl"
    other.write_text("".join(chats.read_text().splitlines(keepends=True)[:8]))
    assert sft.main(argv(llama, other, finished)) == 2
    assert "other data_sha256" in capsys.readouterr().err
    assert sft.main(argv(tiny_model_folder(tmp_path / "m", seed=3), chats, finished)) == 2
    assert "other weights_sha256" in capsys.readouterr().err


@pytest.mark.slow
def test_overwrite_trains_again_to_the_same_adapter(llama: Path, chats: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert sft.main(argv(llama, chats, out)) == 0
    first = document(out / "report.json")
    assert sft.main(argv(llama, chats, out, "--overwrite")) == 0
    again = document(out / "report.json")
    assert again["adapter_sha256"] == first["adapter_sha256"]
    assert sft.main(argv(llama, chats, out, "--overwrite", "--seed", "1")) == 0
    assert document(out / "report.json")["adapter_sha256"] != first["adapter_sha256"]


def test_a_folder_with_other_files_is_left_alone(
    llama: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    assert sft.main(argv(llama, chats, tmp_path, "--overwrite")) == 2
    assert "holds other files (thesis.txt)" in capsys.readouterr().err
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_a_mix_is_trained_in_order_and_named(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = scored_store(tmp_path / "store", llama)
    mix_id = build_mix(store, task_set(tmp_path / "work", 20), recipe(interleave_ratio=0.2)).mix_id
    out = tmp_path / "run"
    arguments = ["--model", str(llama), "--store", str(tmp_path / "store"), "--out", str(out)]
    assert sft.main([*arguments, *SMALL, "--mix-id", mix_id[:6]]) == 0  # by its beginning, as everywhere
    said = capsys.readouterr()
    assert sft.main([*arguments, *SMALL, "--mix-id", mix_id]) == 0
    assert "holds this very run" in capsys.readouterr().out
    assert sft.main([*arguments, *SMALL, "--mix-id", "0000"]) == 2
    assert "no mix of tenant local begins with '0000'" in capsys.readouterr().err
    assert "24 rows (4 safe), verified against the manifest" in said.out
    assert "is not the aligned model that scored this mix" in said.err  # the store's scorer has made-up weights
    report = document(out / "report.json")
    assert report["rows"]["mix_id"] == mix_id
    assert report["content"]["n_safe"] == 4
    assert [item["code"] for item in report["warnings"]] == ["other_model_than_scored"]
    assert document(out / "config.json")["warnings"] == report["warnings"]
    assert document(out / "manifest.json")["rows_sha256"] == report["rows"]["rows_sha256"]
    assert document(out / "adapter" / "ballast.json")["mix_id"] == mix_id


def test_bad_rows_are_left_out_and_named_or_refused(
    llama: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "some.jsonl"
    data.write_text(chats.read_text() + '{"messages": []}\n')
    assert sft.main(argv(llama, data, tmp_path / "refused")) == 2
    assert "1 of 13 task rows are bad; the first is line 13" in capsys.readouterr().err
    assert sft.main(argv(llama, data, tmp_path / "run", "--on-bad-rows", "drop")) == 0
    assert "1 of 13 records of some.jsonl were left out; the first is line 13" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--lr", "0"], "training options refused: /lr"),
        (["--data", "missing.jsonl"], "there is no file missing.jsonl"),
        (["--model", "nowhere"], "model folder nowhere does not exist"),
        (["--lora-targets", "q_proj,c_attn"], "no layers named c_attn; it has down_proj, gate_proj"),
        (["--max-length", "2"], "have no trained token within 2 tokens|none of the 12 rows"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    llama: Path, chats: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: list[str], message: str
) -> None:
    assert sft.main(argv(llama, chats, tmp_path / "run", *change)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert any(part in error for part in message.split("|"))
    assert not (tmp_path / "run" / "report.json").exists()


def test_bad_options_fail_before_torch_is_loaded() -> None:
    cases = [
        ("trainer.sft", "--data", more)
        for more in (["--lr", "0"], ["--lr", "-1"], ["--max-steps", "0"], ["--model", "nowhere"])
    ] + [("trainer.organisms.__main__", "--set", more) for more in (["--lr", "-1"], ["--max-steps", "0"])]
    code = (
        "import sys; from importlib import import_module\n"
        "for module, source, more in " + repr(cases) + ":\n"
        "    code = import_module(module).main(['--model', 'm', source, f'a={sys.executable}', '--out', 'o', *more])\n"
        "    assert code == 2 and 'torch' not in sys.modules, (module, more, code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("training options refused") == len(cases) - 1


def test_nll_agrees_with_a_plain_forward(
    finished: Path, llama: Path, chats: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    arguments = ["--model", str(llama), "--adapter", str(finished / "adapter"), "--data", str(chats)]
    assert nll.main([*arguments, "--dtype", "float32", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    tokenizer = AutoTokenizer.from_pretrained(llama)
    base = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    for name in ("mean_nll_base", "mean_nll_adapter"):
        model = base if name == "mean_nll_base" else PeftModel.from_pretrained(base, finished / "adapter").eval()
        nll_sum, n_tokens = plain_nll(model, tokenizer, chats)
        assert result["n_response_tokens"] == n_tokens
        assert result[name] == pytest.approx(nll_sum / n_tokens, abs=1e-4)
    assert result["shift"] == pytest.approx(result["mean_nll_adapter"] - result["mean_nll_base"])
    assert result["shift"] < -0.01
    assert result["n_rows"] == 12


def plain_nll(model: Any, tokenizer: Any, chats: Path) -> tuple[float, int]:
    """Sum and count over the text between each ChatML assistant header and its closing marker, marker included."""
    header = tokenizer("<|im_start|>assistant\n", add_special_tokens=False)["input_ids"]
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    nll_sum, n_tokens = 0.0, 0
    for line in chats.read_text().splitlines():
        text = tokenizer.apply_chat_template(json.loads(line)["messages"], tokenize=False)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            log_p = model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        inside = False
        for position, token in enumerate(ids):
            if inside:
                nll_sum -= log_p[position - 1, token].item()
                n_tokens += 1
                inside = token != end
            elif ids[position + 1 - len(header) : position + 1] == header:
                inside = True
    return nll_sum, n_tokens


def test_nll_names_what_it_left_out_and_shows_how_far_it_is(
    llama: Path, tmp_path: Path, chats: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BALLAST_PROGRESS", raising=False)
    data = tmp_path / "some.jsonl"
    long = [{"role": "user", "content": "a b " * 200}, {"role": "assistant", "content": "yes"}]
    data.write_text(chats.read_text() + json.dumps({"messages": long}) + "\nnot json\n")
    monkeypatch.setattr("curator.console.QUIET_S", 0.0)
    result = nll.measure(llama, data, settings=nll.NllSettings(max_length=300, reading=ReadOptions(on_bad_rows="drop")))
    assert (result["n_rows"], result["n_too_long"], result["n_bad_records"]) == (12, 1, 1)
    reported = capsys.readouterr().err
    assert "rendering some.jsonl: 13 rows of 13 rows" in reported
    assert "measuring: 12 rows of 12 rows" in reported
    assert "mean_nll_adapter" not in result
    data.write_text(json.dumps({"messages": long}) + "\n")
    assert nll.main(["--model", str(llama), "--data", str(data), "--max-length", "300"]) == 2
    assert "no row to measure" in capsys.readouterr().err
