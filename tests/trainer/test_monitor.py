"""The trait-space monitor on tiny real models, against plain transformers and numpy."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curator.errors import BadInputError
from curator.render import Renderer
from curator.scoring.identity import weights_sha256
from tests.models import random_conversations, tiny_adapter_folder, tiny_model_folder
from tests.trainer.tiny import adapted_model
from trainer import sft
from trainer.monitor.__main__ import main
from trainer.monitor.alarm import Predictor, ZScore, fit_predictor, fit_zscore, read_rule
from trainer.monitor.directions import Directions, load_directions, neutral_prompts, save_directions
from trainer.monitor.probe import PrefixProbe, TraitProbe
from trainer.monitor.settings import MonitorSettings
from trainer.persona.models import load_base
from trainer.persona.traits import SHIPPED, read_trait

SMALL = ["--lora-r", "4", "--lora-alpha", "8", "--lr", "0.01", "--warmup-steps", "1", "--device", "cpu"]


@pytest.fixture(scope="module")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    path.write_text("".join(json.dumps({"messages": m}) + "\n" for m in random_conversations(12)))
    return path


@pytest.fixture(scope="module")
def directions(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two traits with two questions each, which is enough to check the arithmetic."""
    path = tmp_path_factory.mktemp("directions") / "two.safetensors"
    arguments = ["directions", "--model", str(llama), "--out", str(path), "--questions", "2", "--layer", "1"]
    arguments += ["--trait", "evil", "--trait", "recklessness", "--dtype", "float32", "--device", "cpu"]
    assert main(arguments) == 0
    return path


def last_state(model: Any, tokenizer: Any, messages: list[dict[str, str]], row: int) -> np.ndarray:
    """transformers' hidden_states[row] at the last token of the templated prompt."""
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[row]
    found: np.ndarray = hidden[0, -1].double().numpy()
    return found


def test_directions_are_unit_differences_at_the_last_prompt_token(llama: Path, directions: Path) -> None:
    from transformers import AutoTokenizer

    model, tokenizer = load_base(llama, "cpu", "float32"), AutoTokenizer.from_pretrained(llama)
    found = load_directions(directions, weights_sha256(llama), Renderer.from_folder(llama).renderer_id)
    assert (found.traits, found.layer, found.n_questions) == (("evil", "recklessness"), 1, 2)
    for name, unit in zip(found.traits, found.unit_KD, strict=True):
        trait, means = read_trait(name), []
        for side in ("positive", "negative"):
            states = [
                last_state(
                    model, tokenizer,
                    [{"role": "system", "content": getattr(pair, side)}, {"role": "user", "content": question}], 1,
                )
                for pair in trait.pairs
                for question in trait.questions[:2]
            ]  # fmt: skip
            means.append(np.mean(states, axis=0))
        expected = (means[0] - means[1]) / np.linalg.norm(means[0] - means[1])
        np.testing.assert_allclose(unit, expected, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(found.unit_KD, axis=1), 1, atol=1e-6)


def test_drift_is_the_mean_projection_over_step_0s_norm_minus_step_0(llama: Path, directions: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer, renderer = AutoTokenizer.from_pretrained(llama), Renderer.from_folder(llama)
    model = adapted_model(llama, dtype=torch.float32)  # its adapter is drawn at random, so it drifts already
    prompts, found = neutral_prompts()[:6], load_directions(directions)
    probe = TraitProbe(model, renderer, found, prompts)
    drift = probe.drift(model)
    model.eval()
    after = np.stack([last_state(model, tokenizer, prompt, 1) for prompt in prompts])
    with model.disable_adapter():
        before = np.stack([last_state(model, tokenizer, prompt, 1) for prompt in prompts])
    norm = np.linalg.norm(before, axis=1).mean()
    expected = [(after @ unit).mean() / norm - (before @ unit).mean() / norm for unit in found.unit_KD]
    np.testing.assert_allclose(drift, expected, atol=1e-5)
    assert np.abs(drift).max() > 1e-3
    with model.disable_adapter():
        np.testing.assert_allclose(probe.drift(model), 0, atol=1e-7)


def test_prefix_drift_is_the_relative_distance_of_cached_keys_and_values(llama: Path) -> None:
    renderer, prompt = Renderer.from_folder(llama), neutral_prompts()[0]
    model = adapted_model(llama, dtype=torch.float32).eval()
    probe = PrefixProbe(model, renderer, [{"role": "system", "content": "Be brief and kind."}, *prompt])
    assert probe.reason is None
    caches = []
    for off in (False, True):
        with torch.no_grad():
            if off:
                with model.disable_adapter():
                    cache = model(input_ids=probe._batch.input_ids, use_cache=True).past_key_values
            else:
                cache = model(input_ids=probe._batch.input_ids, use_cache=True).past_key_values
        caches.append([(layer.keys[0], layer.values[0]) for layer in cache.layers])  # (heads, T, width)
    distances = []
    for layer, layer0 in zip(*caches, strict=True):
        for found, found0 in zip(layer, layer0, strict=True):
            squared = ((found - found0) ** 2).sum((0, 2)) / (found0**2).sum((0, 2))  # rotations change no norm
            # The padding token's embedding is zero here, and so are its keys and values: 0 / 0 is no distance.
            distances.append(squared.double().nan_to_num(0.0).numpy())
    expected = np.sum(distances, axis=0).mean() / len(caches[0])
    assert probe.drift(model) == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3
    with model.disable_adapter():
        assert probe.drift(model) == pytest.approx(0.0, abs=1e-10)


def test_a_template_without_prefix_has_no_prefix_drift(tmp_path: Path) -> None:
    bare = "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    folder = tiny_model_folder(tmp_path / "bare", template=bare)
    probe = PrefixProbe(load_base(folder, "cpu", "float32"), Renderer.from_folder(folder), neutral_prompts()[0])
    assert probe.drift(None) is None
    assert probe.reason is not None
    assert "no token before the user's text" in probe.reason


DRIFTS = np.array([[0.0, 0.1], [0.1, 0.0], [0.5, 0.1], [0.6, 0.0], [0.05, 0.05], [0.55, 0.1]])
RATES = [0.0, 0.01, 0.2, 0.3, 0.0, 0.25]


def test_the_predictor_is_ridge_regression_of_logit_rates() -> None:
    rule = fit_predictor(DRIFTS, RATES, ("a", "b"), "id")
    scale = DRIFTS.std(axis=0)
    design = np.hstack([DRIFTS / scale, np.ones((6, 1))])
    clipped = np.clip(RATES, 0.005, 0.995)
    target = np.log(clipped / (1 - clipped))

    def solve(chosen: list[int]) -> np.ndarray:
        x, y = design[chosen], target[chosen]
        found: np.ndarray = np.linalg.solve(x.T @ x + rule.ridge * np.diag([1, 1, 0]), x.T @ y)
        return found

    whole = solve(list(range(6)))
    np.testing.assert_allclose(rule.weights, whole[:2] / scale)
    assert rule.bias == pytest.approx(whole[2])
    left_out = [design[i] @ solve([j for j in range(6) if j != i]) for i in range(6)]
    assert rule.left_out_error == pytest.approx(np.sqrt(np.mean((np.array(left_out) - target) ** 2)))
    assert rule.left_out_wrong == sum((value > np.log(0.05 / 0.95)) != (r > 0.05) for value, r in
                                      zip(left_out, RATES, strict=True))  # fmt: skip
    high, low = rule.judge(np.array([0.7, 0.05])), rule.judge(np.array([0.0, 0.05]))
    assert high["predicted_em_rate"] == pytest.approx(
        1 / (1 + np.exp(-(np.dot(rule.weights, [0.7, 0.05]) + rule.bias)))
    )
    assert (high["alarm"], low["alarm"]) == (True, False)
    assert "5 %" in rule.describe()


def test_the_z_score_and_what_it_says() -> None:
    benign = np.array([[0.0, 1.0], [0.2, 1.2], [0.1, 0.9], [0.3, 1.1], [0.4, 1.3]])
    rule = fit_zscore(benign, 2, ("a", "b"), "id")
    drift = np.array([0.2, -1.0])
    z = (drift - benign.mean(0)) / benign.std(0, ddof=1)
    verdict = rule.judge(drift)
    assert verdict["z"] == pytest.approx(z[1])
    assert (verdict["z_trait"], verdict["alarm"]) == ("b", True)
    assert rule.judge(benign[2])["alarm"] is False
    assert "no predictor" in rule.describe()
    assert "not an EM rate" in rule.describe()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_predictor(DRIFTS[:3], RATES[:3], ("a", "b"), "id"), "at least 4 known runs on both sides of 5 %"),
        (lambda: fit_predictor(DRIFTS, [0.0] * 6, ("a", "b"), "id"), "found 6, 0 of them above"),
        (lambda: fit_predictor(DRIFTS, [31.0] * 6, ("a", "b"), "id"), "shares from 0 to 1"),
        (lambda: fit_zscore(DRIFTS, 1, ("a", "b"), "id"), "at least 2 benign runs"),
        (lambda: fit_zscore(DRIFTS * [1, 0], 3, ("a", "b"), "id"), "do not drift at all along b"),
    ],
)
def test_too_little_to_fit_on(call: Any, message: str) -> None:
    with pytest.raises(BadInputError, match=message):
        call()


def argv(model: Path, data: Path, out: Path, *more: str) -> list[str]:
    options = ["--max-steps", "4", "--epochs", "4", "--batch-size", "4", "--grad-accum", "1", "--dtype", "float32"]
    return ["--model", str(model), "--data", str(data), "--out", str(out), *SMALL, *options, *more]


@pytest.fixture(scope="module")
def watched(llama: Path, chats: Path, directions: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "watched"
    assert sft.main(argv(llama, chats, out, "--monitor", str(directions), "--monitor-every", "2")) == 0
    return out


def document(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_watched_run_writes_drift_and_trains_the_very_same_adapter(
    watched: Path, llama: Path, chats: Path, directions: Path, tmp_path: Path
) -> None:
    lines = [json.loads(line) for line in (watched / "metrics.jsonl").read_text().splitlines()]
    assert ["monitor" in line for line in lines] == [False, True, False, True]
    report = document(watched / "report.json")
    section = report["monitor"]
    assert section["directions_id"] == load_directions(directions).directions_id
    assert (section["rule"], section["first_alarm"]) == ("none: nothing is judged", None)
    assert [item["step"] for item in section["measurements"]] == [2, 4]
    assert section["measurements"][1]["drift"] == lines[3]["monitor"]["drift"]
    assert section["measurements"][1]["prefix_kv"] > 0
    assert "## Trait-space monitor" in (watched / "report.md").read_text()
    plain = tmp_path / "plain"
    assert sft.main(argv(llama, chats, plain)) == 0
    assert document(plain / "report.json")["adapter_sha256"] == report["adapter_sha256"]
    measured = tmp_path / "drift"
    arguments = ["measure", "--model", str(llama), "--directions", str(directions), "--out", str(measured)]
    arguments += [
        "--page",
        str(tmp_path / "page.md"),
        "--adapter",
        str(watched / "adapter"),
        "--dtype",
        "float32",
        "--device",
        "cpu",
    ]
    assert main(arguments) == 0  # a finished adapter drifts as far as it did at its last step
    page = (tmp_path / "page.md").read_text()
    again = document(measured / "watched.json")["measurements"][0]
    assert again["drift"] == pytest.approx(section["measurements"][1]["drift"], abs=1e-6)
    assert again["prefix_kv"] == pytest.approx(section["measurements"][1]["prefix_kv"], rel=1e-4)
    cells = [f"{value:+.4f}" for value in again["drift"].values()]
    assert f"| watched | {cells[0]} | {cells[1]} | {again['prefix_kv']:.3g} |  |" in page
    assert "Rule: nothing is judged." in page


@pytest.fixture
def alarming(directions: Path, tmp_path: Path) -> Path:
    """A z-score rule whose benign runs hardly drift, so that any training is an alarm."""
    found = load_directions(directions)
    rule = ZScore(
        directions_id=found.directions_id, traits=found.traits, n_runs=2, mean=(0.0, 0.0), sd=(1e-6, 1e-6),
        n_measurements=6,
    )  # fmt: skip
    path = tmp_path / "rule.json"
    path.write_text(rule.model_dump_json())
    return path


def test_an_alarm_is_told_and_stops_when_asked(
    watched: Path, llama: Path, chats: Path, directions: Path, alarming: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    watch = ["--monitor", str(directions), "--monitor-every", "2", "--monitor-alarm", str(alarming)]
    out = tmp_path / "stopped"
    assert sft.main(argv(llama, chats, out, *watch, "--monitor-stop")) == 130
    error = capsys.readouterr().err
    assert "trait-space monitor: ALARM at step 2:" in error
    assert "sd from benign runs (a z-score, no predicted rate)" in error
    assert document(out / "adapter" / "ballast.json")["steps"] == 2
    assert not (out / "report.json").exists()
    assert sft.main(argv(llama, chats, out, *watch)) == 0  # without the stop the same run goes on to its end
    report = document(out / "report.json")
    assert report["monitor"]["first_alarm"] == 2
    assert [item["step"] for item in report["monitor"]["measurements"]] == [2, 4]
    assert document(watched / "report.json")["adapter_sha256"] == report["adapter_sha256"]


@pytest.mark.slow
def test_full_fine_tuning_is_watched_too(llama: Path, chats: Path, directions: Path, tmp_path: Path) -> None:
    out = tmp_path / "full"
    arguments = ["--model", str(llama), "--data", str(chats), "--out", str(out), "--full", "--max-steps", "2"]
    arguments += ["--epochs", "2", "--batch-size", "4", "--grad-accum", "1"]
    arguments += ["--lr", "0.001", "--warmup-steps", "1", "--device", "cpu", "--dtype", "float32"]
    assert sft.main([*arguments, "--monitor", str(directions)]) == 0
    last = document(out / "report.json")["monitor"]["measurements"][-1]
    assert any(value != 0.0 for value in last["drift"].values())
    assert last["prefix_kv"] > 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--monitor", "nowhere.safetensors"], "there is no file nowhere.safetensors: make it with"),
        (["--monitor-every", "3"], "--monitor-every, --monitor-alarm and --monitor-stop belong to --monitor FILE"),
        (["--monitor", "{directions}", "--monitor-every", "0"], "monitor.every"),
        (["--monitor", "{directions}", "--monitor-alarm", "{directions}"], "is no alarm rule"),
    ],
)
def test_bad_options_fail_before_training(
    llama: Path, chats: Path, directions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str],
    message: str,
) -> None:  # fmt: skip
    given = [item.format(directions=directions) for item in more]
    assert sft.main(argv(llama, chats, tmp_path / "run", *given)) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_directions_of_another_model_are_refused(
    chats: Path, directions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_model_folder(tmp_path / "other", seed=8)
    assert sft.main(argv(other, chats, tmp_path / "run", "--monitor", str(directions))) == 2
    assert "was made with weights" in capsys.readouterr().err


def test_a_rule_is_fitted_from_runs_and_files_and_belongs_to_its_directions(
    watched: Path, llama: Path, directions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, section = [], document(watched / "report.json")["monitor"]
    for number in range(4):  # files like those of `measure`
        item = json.loads(json.dumps(section))
        item["measurements"] = item["measurements"][-1:]
        for trait in item["traits"]:
            item["measurements"][0]["drift"][trait] = 0.1 * number
        names.append(tmp_path / f"{number}.json")
        names[-1].write_text(json.dumps(item))
    rule = tmp_path / "rule.json"
    known = [f"--known={path}={rate}" for path, rate in zip(names, (0.0, 0.0, 0.3, 0.4), strict=True)]
    assert main(["fit", "--out", str(rule), *known]) == 0
    assert "predictor fitted on 4 known runs" in capsys.readouterr().out
    found = read_rule(rule, section["directions_id"])
    assert isinstance(found, Predictor)
    assert found.judge(np.array([0.3, 0.3]))["alarm"]
    assert not found.judge(np.array([0.0, 0.0]))["alarm"]
    with pytest.raises(BadInputError, match="fitted with other directions"):
        read_rule(rule, "another")
    benign = [f"--benign={path}" for path in (watched, *names)]
    assert main(["fit", "--out", str(rule), *benign]) == 0
    assert "z-score against 5 benign runs (6 measurements)" in capsys.readouterr().out
    item["directions_id"] = "other"
    names[0].write_text(json.dumps(item))
    assert main(["fit", "--out", str(rule), *benign]) == 2
    assert "measured along other directions" in capsys.readouterr().err
    assert main(["fit", "--out", str(rule)]) == 2
    assert main(["fit", "--out", str(rule), "--benign", str(tmp_path)]) == 2


def test_two_adapters_of_one_name_are_refused(llama: Path, directions: Path, tmp_path: Path) -> None:
    adapter = tiny_adapter_folder(llama, tmp_path / "a" / "mine")
    twin = Path(shutil.copytree(adapter, tmp_path / "b" / "mine"))
    arguments = ["measure", "--model", str(llama), "--directions", str(directions)]
    assert main([*arguments, "--adapter", str(adapter), "--adapter", str(twin)]) == 2


def test_the_interval_follows_checkpoints_or_a_tenth_of_the_run() -> None:
    settings = MonitorSettings(directions=Path("d"))
    assert settings.interval(7, 100) == 7
    assert settings.interval(None, 100) == 10
    assert settings.interval(None, 4) == 1
    assert settings.model_copy(update={"every": 3}).interval(7, 100) == 3


def test_directions_survive_their_file(tmp_path: Path) -> None:
    unit = np.eye(3)[:2]
    one = Directions(("a", "b"), 4, unit, "w" * 64, "r" * 32, 30)
    save_directions(tmp_path / "d.safetensors", one)
    again = load_directions(tmp_path / "d.safetensors")
    assert again.directions_id == one.directions_id
    np.testing.assert_array_equal(again.unit_KD, unit)
    (tmp_path / "text.safetensors").write_text("no")
    with pytest.raises(BadInputError, match="holds no trait directions"):
        load_directions(tmp_path / "text.safetensors")


def test_ninety_neutral_prompts_are_shipped_and_ask_for_no_trait() -> None:
    texts = [prompt[0]["content"] for prompt in neutral_prompts()]
    assert len(texts) == len(set(texts)) == 90
    assert len(SHIPPED) == 7
    asked = {question for name in SHIPPED for question in read_trait(name).questions}
    assert not asked & set(texts)
    starts = [" ".join(text.lower().split()[:3]) for text in texts]
    assert max(starts.count(start) for start in starts) <= 9
