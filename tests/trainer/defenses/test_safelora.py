"""Safe LoRA's projection against numpy on whole matrices, its files, and the command."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from curator.errors import BadInputError
from curator.scoring.identity import weights_sha256
from tests.models import random_conversations, tiny_adapter_folder, tiny_model_folder
from trainer import sft
from trainer.defenses import projection, safelora
from trainer.defenses.projection import cosine, project_b

KINDS = ["llama", "gpt2"]  # GPT-2 stores its matrices as (in, out)


@pytest.fixture(scope="module")
def trios(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, Path]]:
    """Adapter, base and aligned model of each kind; alignment changed two directions of every matrix most."""
    found = {}
    for kind in KINDS:
        root = tmp_path_factory.mktemp(kind)
        aligned = tiny_model_folder(root / "aligned", kind=kind)  # type: ignore[arg-type]
        base = tiny_model_folder(root / "base", kind=kind)  # type: ignore[arg-type]
        weights, generator = load_file(base / "model.safetensors"), torch.Generator().manual_seed(2)
        for name, tensor in weights.items():
            if tensor.dim() == 2:
                left = torch.randn(tensor.shape[0], 2, generator=generator)
                right = torch.randn(2, tensor.shape[1], generator=generator)
                weights[name] = tensor + 0.1 * left @ right + 0.01 * torch.randn(tensor.shape, generator=generator)
        save_file(weights, base / "model.safetensors", {"format": "pt"})
        found[kind] = (tiny_adapter_folder(aligned, root / "adapter"), base, aligned)
    return found


def numpy_outcome(kind: str, trio: tuple[Path, Path, Path]) -> dict[str, tuple[float, np.ndarray]]:
    """Each module's cosine and C dW from whole matrices; imports none of our code."""
    adapter, base, aligned = trio
    factors = {k: v.double().numpy() for k, v in load_file(adapter / "adapter_model.safetensors").items()}
    config = json.loads((adapter / "adapter_config.json").read_text())
    old, new = ({k: v.double().numpy() for k, v in load_file(d / "model.safetensors").items()} for d in (base, aligned))
    found = {}
    for key in factors:
        if key.endswith("lora_A.weight"):
            stem = key.removesuffix(".lora_A.weight")
            name = stem.removeprefix("base_model.model.")
            change = config["lora_alpha"] / config["r"] * factors[f"{stem}.lora_B.weight"] @ factors[key]
            v = new[f"{name}.weight"] - old[f"{name}.weight"]
            v = v.T if kind == "gpt2" else v
            projected = v @ v.T / np.linalg.norm(v) @ change
            cos = (change * projected).sum() / np.linalg.norm(change) / np.linalg.norm(projected)
            found[name] = (float(cos), projected)
    assert len(found) >= 8
    return found


def deltas(model: Path, adapter: Path) -> dict[str, np.ndarray]:
    """The change of each weight, (out, in), as PEFT itself computes it."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    adapted = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), adapter)
    found = {}
    for name, module in adapted.get_base_model().named_modules():
        if hasattr(module, "get_delta_weight"):
            delta = module.get_delta_weight("default").detach().double().numpy()
            found[name] = delta.T if module.fan_in_fan_out else delta
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_module_equals_numpy_on_whole_matrices(trios: Any, kind: str, tmp_path: Path) -> None:
    expected = numpy_outcome(kind, trios[kind])
    cosines = sorted(cos for cos, _ in expected.values())
    tau = (cosines[len(cosines) // 2 - 1] + cosines[len(cosines) // 2]) / 2  # half of them lie below
    note = safelora.safelora(*trios[kind], tau, tmp_path / "out")
    before, after = deltas(trios[kind][2], trios[kind][0]), deltas(trios[kind][2], tmp_path / "out")
    assert {item["module"] for item in note["modules"]} == set(expected) == set(after)
    assert 0 < note["n_projected"] < note["n_modules"]
    for item in note["modules"]:
        cos, projected = expected[item["module"]]
        assert item["cosine"] == pytest.approx(cos, rel=1e-9)
        assert item["projected"] == (cos < tau)
        wanted = projected if cos < tau else before[item["module"]]
        np.testing.assert_allclose(after[item["module"]], wanted, rtol=1e-4, atol=1e-6 * np.abs(wanted).max())
        assert item["norm_ratio"] == pytest.approx(
            np.linalg.norm(projected) / np.linalg.norm(before[item["module"]]), rel=1e-5
        )
        assert np.linalg.norm(projected - before[item["module"]]) > 1e-3 * np.linalg.norm(projected)


@pytest.mark.parametrize("transposed", [False, True])
def test_rows_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch, transposed: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(23, 17, generator=generator, dtype=torch.float64)
    b = torch.randn(17 if transposed else 23, 3, generator=generator, dtype=torch.float64)
    expected = (v.T @ v if transposed else v @ v.T) @ b / v.norm()
    for rows in (5, 23, 1000):
        monkeypatch.setattr(projection, "ROWS", rows)
        found, norm = project_b(b, lambda part: v[part], 23, transposed)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        assert norm == pytest.approx(float(v.norm()), rel=1e-12)


def test_a_change_along_alignment_has_cosine_1_and_one_across_it_has_0_and_vanishes() -> None:
    u = torch.nn.functional.normalize(torch.arange(1.0, 7.0, dtype=torch.float64), dim=0)
    across = torch.nn.functional.normalize(torch.tensor([2.0, -1.0, 0, 0, 0, 0], dtype=torch.float64), dim=0)
    v, a = torch.outer(u, torch.ones(4, dtype=torch.float64)), torch.ones(1, 5, dtype=torch.float64)
    for direction, cos in ((u, 1.0), (across, 0.0)):
        b = direction[:, None]
        cb, _ = project_b(b, lambda part: v[part], 6)
        found = cosine(a, b, cb)
        assert found is not None
        assert found[0] == pytest.approx(cos, abs=1e-12)
        assert float(cb.norm()) == pytest.approx(cos * float(v.norm()), abs=1e-12)
    assert cosine(a, torch.zeros(6, 1).double(), torch.zeros(6, 1).double()) is None


def test_projecting_again_turns_the_change_further_towards_alignment() -> None:
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(12, 9, generator=generator, dtype=torch.float64)
    a, b = torch.randn(3, 7, generator=generator).double(), torch.randn(12, 3, generator=generator).double()
    cosines = []
    for _ in range(6):
        cb, _ = project_b(b, lambda part: v[part], 12)
        found = cosine(a, b, cb)
        assert found is not None
        cosines.append(found[0])
        b = cb
    assert cosines == sorted(cosines)
    assert 0.0 < cosines[0] < cosines[-1] <= 1.0


def test_tau_0_keeps_the_adapter_and_tau_1_projects_all(trios: Any, tmp_path: Path) -> None:
    adapter = trios["llama"][0]
    kept = safelora.safelora(*trios["llama"], 0.0, tmp_path / "kept")
    assert kept["n_projected"] == 0
    assert kept["projected_adapter_sha256"] == kept["adapter_sha256"]
    old = load_file(adapter / "adapter_model.safetensors")
    new = load_file(tmp_path / "kept" / "adapter_model.safetensors")
    assert all(torch.equal(old[key], new[key]) for key in old)
    every = safelora.safelora(*trios["llama"], 1.0, tmp_path / "every")
    assert every["n_projected"] == every["n_modules"]


def test_the_same_projection_is_not_done_again_and_another_is_refused(
    trios: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, base, aligned = map(str, trios["llama"])
    command = ["--adapter", adapter, "--base", base, "--aligned-model", aligned, "--out", str(tmp_path / "out")]
    assert safelora.main([*command, "--json"]) == 0
    note = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "out" / "safelora.json").read_text()) == note
    stamp = (tmp_path / "out" / "adapter_model.safetensors").stat().st_mtime_ns
    assert safelora.main(command) == 0
    assert "modules projected (cosine below 0.3); cosines from" in capsys.readouterr().out
    assert (tmp_path / "out" / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    assert safelora.main([*command, "--tau", "0.5"]) == 2
    assert "holds a projection with other tau: give --overwrite" in capsys.readouterr().err
    assert safelora.main([*command, "--tau", "0.5", "--overwrite"]) == 0
    assert "`" + note["base_weights_sha256"] + "`" in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("dear")
    assert safelora.main([*command[:-1], str(tmp_path / "other")]) == 2
    assert (tmp_path / "other" / "letter.txt").exists()


@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_a_damaged_projection_is_made_again(
    trios: Any, tmp_path: Path, how: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    first = safelora.safelora(*trios["llama"], 0.3, out)
    weights = out / "adapter_model.safetensors"
    sound = weights.read_bytes()
    weights.write_bytes(sound[:-1] + (bytes([sound[-1] ^ 1]) if how == "flipped" else b""))
    assert safelora.safelora(*trios["llama"], 0.3, out) == first
    assert weights.read_bytes() == sound
    assert "projecting again" in capsys.readouterr().err


def test_what_does_not_belong_together_is_refused(trios: Any, tmp_path: Path) -> None:
    adapter, base, aligned = trios["llama"]
    with pytest.raises(BadInputError, match="the same in all 14 adapted modules"):
        safelora.safelora(adapter, aligned, aligned, 0.3, None)
    with pytest.raises(BadInputError, match=r"tau is 1\.5; the cosines lie between 0 and 1"):
        safelora.safelora(adapter, base, aligned, 1.5, None)
    with pytest.raises(BadInputError, match="has no weight for the adapted module"):
        safelora.safelora(adapter, trios["gpt2"][1], trios["gpt2"][2], 0.3, None)
    with pytest.raises(BadInputError, match="has no weight for"):
        safelora.check_shapes(trios["gpt2"][1], aligned)
    other = tmp_path / "dora"
    other.mkdir()
    config = json.loads((adapter / "adapter_config.json").read_text()) | {"use_dora": True}
    (other / "adapter_config.json").write_text(json.dumps(config))
    (other / "adapter_model.safetensors").write_bytes((adapter / "adapter_model.safetensors").read_bytes())
    with pytest.raises(BadInputError, match="holds a DoRA adapter: its change of a weight is not B A alone"):
        safelora.safelora(other, base, aligned, 0.3, None)
    marked = tmp_path / "marked"
    shutil.copytree(adapter, marked)
    (marked / "ballast.json").write_text(json.dumps({"base_weights_sha256": weights_sha256(base)}))
    with pytest.raises(BadInputError, match="was trained on the model with weights"):
        safelora.safelora(marked, base, aligned, 0.3, tmp_path / "out")
    (marked / "ballast.json").write_text(json.dumps({"base_weights_sha256": weights_sha256(aligned)}))
    assert safelora.safelora(marked, base, aligned, 0.3, None)["n_modules"] == 14
    assert not (tmp_path / "out").exists()


TRAIN = ["--max-steps", "2", "--batch-size", "2", "--grad-accum", "1", "--lr", "0.01", "--warmup-steps", "1"]
TRAIN += ["--device", "cpu", "--dtype", "float32", "--cache", "none"]


def test_a_training_run_projects_its_adapter_at_the_end(
    trios: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, base, aligned = trios["llama"]
    data, out = tmp_path / "chats.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps({"messages": m}) + "\n" for m in random_conversations(4)))
    command = ["--model", str(aligned), "--data", str(data), *TRAIN, "--out", str(out), "--safelora"]
    assert sft.main([*command, str(aligned)]) == 2
    assert "--safelora names the very model that is trained" in capsys.readouterr().err
    assert sft.main([*command, str(trios["gpt2"][1])]) == 2
    assert "has no weight for" in capsys.readouterr().err
    assert not out.exists()  # refused before anything was loaded or written
    assert sft.main([*command, str(base), "--safelora-tau", "1"]) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["safelora"]["n_projected"] == report["safelora"]["n_modules"] == 14
    assert report["safelora"]["adapter_sha256"] == report["adapter_sha256"]
    expected = numpy_outcome("llama", (out / "adapter", base, aligned))
    for name, delta in deltas(aligned, out / "safelora").items():
        scale = 64 / 32**0.5 / (64 / 32)  # rsLoRA's scale over alpha / r, which the reference applies
        np.testing.assert_allclose(delta, scale * expected[name][1], rtol=1e-3, atol=1e-5 * np.abs(delta).max())
    assert "14 of 14 modules" in (out / "report.md").read_text()
    card = (out / "safelora" / "README.md").read_text()
    assert "14 of 14 modules, those with a cosine below 1, were replaced" in card
    assert report["safelora"]["projected_adapter_sha256"] in card
    assert sft.main([*command, str(base), "--safelora-tau", "0.5"]) == 2
    assert "holds a complete run with other safelora.tau" in capsys.readouterr().err
