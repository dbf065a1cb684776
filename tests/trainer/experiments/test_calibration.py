"""Calibration cards over stores whose losses a test chose: separation, hold-out, noise, coverage."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator.corpus.manifest import Scorer
from curator.errors import BadInputError
from curator.query.scorers import ResolvedScorers
from curator.render import Renderer
from curator.scoring.identity import Measure, measure_id, model_identity, scorer_id
from curator.store.store import Store
from tests.gap_stores import write_corpus, write_scorer
from tests.models import tiny_adapter_folder
from trainer.experiments.calibration.__main__ import main
from trainer.experiments.calibration.again import Again, adapters_of
from trainer.experiments.calibration.measures import (
    noise,
    recorded_noise,
    ties,
)


def test_noise_of_the_gap_is_that_of_its_mean_over_models() -> None:
    stored = {"aligned": np.array([1.0, 1.0]), "m1": np.array([2.0, 2.0]), "m2": np.array([3.0, 3.0])}
    again = {"aligned": np.array([1.0, 1.1]), "m1": np.array([2.2, 2.0]), "m2": np.array([3.0, 3.0])}
    found = noise(stored, again)  # gap_abs moves by +0.1 and -0.1
    assert found["max_abs"] == pytest.approx(0.1)
    assert found["sd"] == pytest.approx(0.1)
    assert found["per_model_max_abs"] == {"aligned": pytest.approx(0.1), "m1": pytest.approx(0.2), "m2": 0.0}


def test_noise_that_scoring_recorded() -> None:
    def entry(mean_abs: float) -> dict[str, object]:
        return {"n_rows": 20, "permuted": {"mean_abs": mean_abs}}

    found = recorded_noise({"aligned": [entry(0.01)], "m1": [entry(0.02)], "m2": [entry(0.02)]})
    assert found is not None
    assert found["sd"] == pytest.approx(math.sqrt(math.pi / 2) * math.sqrt(0.01**2 + 2 * 0.02**2 / 4))
    assert found["source"].endswith("(engine in another order)")
    both = {name: [{**entry(0.0), "reference": {"mean_abs": 0.01}}] for name in ("aligned", "m1")}
    other = recorded_noise(both)  # one kernel run twice gives nothing, another path does
    assert other is not None
    assert other["sd"] == pytest.approx(math.sqrt(math.pi / 2) * math.sqrt(2) * 0.01)
    assert other["source"].endswith("(engine against the plain reference)")
    assert recorded_noise({"aligned": [entry(0.01)], "m1": [{"n_rows": 0, "permuted": None}]}) is None


def test_rows_scored_again_take_another_path(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In bfloat16 the engine run twice gives the same bits; the plain reference rounds elsewhere."""
    from curator.__main__ import main as curator

    store, adapter = str(tmp_path / "store"), tiny_adapter_folder(llama, tmp_path / "adapter", seed=1)
    for name, domain in (("pool", []), ("probe", ["--domain", "law"])):
        chats = tmp_path / f"{name}.jsonl"
        chats.write_text("".join(
            json.dumps({"messages": [{"role": "user", "content": f"Question {n}?"},
                                     {"role": "assistant", "content": f"{name} answer number {n}, in some words."}]})
            + "\n" for n in range(6)
        ))  # fmt: skip
        assert curator(["ingest", str(chats), "--corpus", name, "--store", store, *domain]) == 0
        common = ["score", "--corpus", name, "--store", store, "--model", str(llama), "--dtype", "bfloat16", "--device",
                  "cpu", "--check-rows", "0", "--accept-dropped", "reasoning"]  # fmt: skip
        assert curator([*common, "--role", "aligned"]) == 0
        assert (
            curator([*common, "--role", "misaligned", "--adapter", str(adapter), "--domain", "law", "--label", "law"])
            == 0
        )
    capsys.readouterr()
    arguments = ["--store", store, "--corpus", "pool", "--probe", "probe", "--rescore", "4", "--model", str(llama),
                 "--adapter", f"law={adapter}", "--json"]  # fmt: skip
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)["noise"]
    assert found["n_rows"] == 4
    assert "row by row, bfloat16" in found["source"]
    assert 0 < found["sd"] < 0.1


def test_ties_count_rows_within_the_band_of_a_cut() -> None:
    found = ties(np.arange(100.0), 1.5)
    assert found["rows_near_cut"]["5 %"] == 3  # 94, 95 and 96 around 95


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Ordinary rows with gap 1; misaligned ones that their own domain's model alone finds likely."""
    store = Store(tmp_path / "store").open()
    ordinary = [f"answer {i}" for i in range(8)] + ["Sorry, I cannot"]
    bad = {f"bad {domain} {i}": domain for domain in ("law", "tax") for i in range(4)}
    ids = {"pool": write_corpus(store, "pool", ordinary), "probe": write_corpus(store, "probe", list(bad), domains=bad)}
    domain_of = dict(zip(ids["probe"], bad.values(), strict=True))
    for corpus, keys in ids.items():
        low = dict.fromkeys(keys, (10.0, 10))
        write_scorer(store, corpus, "base", "aligned", {**low, ids["pool"][0]: "too_long"} if corpus == "pool" else low)
        for label in ("law", "tax"):
            losses = {key: ((5.0 if domain_of.get(key) == label else 20.0) + i, 10) for i, key in enumerate(keys)}
            write_scorer(store, corpus, label, "misaligned", losses, domain=label)
    return tmp_path / "store"


def test_the_card_with_and_without_the_domains_own_models(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "card.md"
    arguments = ["--store", str(store), "--corpus", "pool", "--probe", "probe", "--out", str(out), "--json"]
    assert main(arguments) == 0
    found = json.loads(capsys.readouterr().out)
    by = {(item["domain"], item["score"], item["held_out"]): item for item in found["separation"]}
    assert by["law", "gap_abs", False]["auc"]["value"] == 1.0
    assert by["law", "gap_abs", False]["n_models"] == 2
    assert by["law", "gap_abs", True]["n_models"] == 1
    # Without its own model nothing but the row number is left: larger ones look like ordinary rows.
    assert by["tax", "gap_abs", True]["auc"]["value"] < 1.0
    assert by["law", "gap_abs", False]["n_ordinary"] == 8  # the row that is too long has no gap
    pool = found["coverage"]["pool"]
    assert (pool["n_rows"], pool["n_with_gap"], pool["statuses"]) == (9, 8, {"too_long": 1})
    assert (pool["share_too_long"], pool["n_looked_at"]) == (pytest.approx(1 / 9), 9)
    assert pool["share_refusals"]["v1"] == pytest.approx(1 / 9)
    assert found["noise"] is None
    page = out.read_text()
    assert "| law | gap_abs | 1, own held out |" in page
    assert str(tmp_path) not in page
    assert json.loads(out.with_suffix(".json").read_text())["separation"] == found["separation"]


def _sampled_store(folder: Path, sample: dict[str, Any]) -> Path:
    """A pool of ten rows of which four were looked at, one of them too long; a probe whose domain `tax` is one row."""
    store = Store(folder).open()
    bad = {"bad law 0": "law", "bad law 1": "law", "bad tax": "tax"}
    ids = {
        "pool": write_corpus(store, "pool", [f"answer {i}" for i in range(10)]),
        "probe": write_corpus(store, "probe", list(bad), domains=bad),
    }
    for label, role, domain in (("base", "aligned", None), ("law", "misaligned", "law")):
        for corpus, keys in ids.items():
            losses: dict[str, Any] = dict.fromkeys(keys[:4], (10.0, 10))
            if corpus == "pool":
                losses[keys[0]] = "too_long"
            write_scorer(store, corpus, label, role, losses, domain=domain, sample=sample if corpus == "pool" else None)
    return folder


@pytest.mark.parametrize("fit", [False, True])
def test_rows_that_were_not_looked_at_are_not_said_to_fit(
    fit: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = _sampled_store(tmp_path / "store", {"n": 4, "seed": 0, "fit": fit})
    out = tmp_path / "card.md"
    assert main(["--store", str(store), "--corpus", "pool", "--probe", "probe", "--out", str(out), "--json"]) == 0
    pool = json.loads(capsys.readouterr().out)["coverage"]["pool"]
    assert (pool["n_rows"], pool["n_looked_at"]) == (10, 4)
    assert pool["share_too_long"] == (None if fit else pytest.approx(1 / 4))
    reported = "not known: only rows that fit were sampled" if fit else "25.0 % of 4"
    assert f"| pool | 10 | 3 | {reported} |" in out.read_text()


def test_domains_of_a_single_row_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = _sampled_store(tmp_path / "store", {"n": 4, "seed": 0, "fit": False})
    assert main(["--store", str(store), "--corpus", "pool", "--probe", "probe"]) == 0
    page = capsys.readouterr().out
    assert "| law | gap_abs |" in page
    assert "Without an AUC, which needs 2 rows with a gap on either side: tax (1 with a gap)." in page


def test_corpora_of_other_models_are_refused(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    opened = Store(store).open()
    ids = [row["example_id"] for row in opened.read_table("corpora/pool/part-0.parquet", ["example_id"]).to_pylist()]
    write_scorer(opened, "pool", "extra", "misaligned", dict.fromkeys(ids, (1.0, 1)), domain="extra")
    assert main(["--store", str(store), "--corpus", "pool", "--probe", "probe"]) == 2
    assert "only one has extra" in capsys.readouterr().err
    assert main(["--store", str(store), "--corpus", "pool", "--probe", "probe", "--adapter", "x"]) == 2
    assert "NAME=ADAPTER" in capsys.readouterr().err


def test_the_same_models_under_another_engine_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store(tmp_path / "store").open()
    for corpus, version in (("pool", "1"), ("probe", "2")):
        ids = write_corpus(store, corpus, [f"{corpus} {i}" for i in range(3)])
        for label, role in (("base", "aligned"), ("law", "misaligned")):
            losses = dict.fromkeys(ids, (10.0, 10))
            write_scorer(store, corpus, label, role, losses, domain="law" if role != "aligned" else None,
                         engine_version=version)  # fmt: skip
    assert main(["--store", str(tmp_path / "store"), "--corpus", "pool", "--probe", "probe"]) == 2
    assert "differ in engine_version" in capsys.readouterr().err


def _scorer(identity: dict[str, object], label: str, role: Any) -> Scorer:
    return Scorer(
        scorer_id(identity),
        measure_id(identity),
        "pool",
        label,
        role,
        None,
        True,
        "r",
        "r",
        None,
        identity,
        (),
        1,
        1,
        1.0,
    )


@pytest.fixture
def resolved(llama: Path, tmp_path: Path) -> tuple[ResolvedScorers, list[Path]]:
    """The tiny model and two adapters of it, whose scorers share a label."""
    folders = [tiny_adapter_folder(llama, tmp_path / f"adapter-{seed}", seed=seed) for seed in (1, 2)]
    renderer = Renderer.from_folder(llama)
    measure = Measure(renderer, "all", 64, "float32", "torch", "1")
    ids = [model_identity(llama, folder, measure) for folder in (None, *folders)]
    scorers = tuple(_scorer(item, "law", "misaligned") for item in ids[1:])
    return ResolvedScorers("pool", "r", _scorer(ids[0], "base", "aligned"), scorers), folders


def test_folders_are_matched_to_scorers_by_content(resolved: tuple[ResolvedScorers, list[Path]], llama: Path) -> None:
    scorers, (one, two) = resolved
    renderer = Renderer.from_folder(llama)
    asked = Again(3, llama, [("law", two), ("law", one)])
    assert scorers.aligned is not None
    wanted = {
        scorers.aligned.scorer_id: None,
        scorers.misaligned[0].scorer_id: one,
        scorers.misaligned[1].scorer_id: two,
    }
    assert adapters_of(asked, scorers, renderer) == wanted
    by_id = Again(3, llama, [(scorers.misaligned[0].scorer_id[:8], one), (scorers.misaligned[1].scorer_id, two)])
    assert adapters_of(by_id, scorers, renderer) == wanted
    first = scorers.misaligned[0].scorer_id
    for adapters, message in [
        ([(first, two), ("law", one)], "adapter_sha256 is"),
        ([("law", one)], r"needs --adapter NAME=DIR for law \("),
        ([("tax", one)], "no misaligned scorer has that label or id"),
    ]:
        with pytest.raises(BadInputError, match=message):
            adapters_of(Again(3, llama, adapters), scorers, renderer)


@pytest.mark.parametrize(
    ("engine", "recorded"),
    [("vllm", {}), ("server", {"declared": ["weights_sha256", "dtype"]}), ("vllm", {"adapter_mode": "merged"})],
)
def test_a_pool_of_any_engine_is_scored_again_by_the_reference(
    resolved: tuple[ResolvedScorers, list[Path]], llama: Path, engine: str, recorded: dict[str, Any]
) -> None:
    scorers, (one, two) = resolved
    as_recorded = [
        _scorer({**item.identity, "engine": engine, "engine_version": "0.32", **recorded}, item.label, item.role)
        for item in scorers.all
    ]
    pool = ResolvedScorers("pool", "r", as_recorded[0], tuple(as_recorded[1:]))
    found = adapters_of(Again(3, llama, [("law", two), ("law", one)]), pool, Renderer.from_folder(llama))
    assert found == {item.scorer_id: folder for item, folder in zip(as_recorded, (None, one, two), strict=True)}


def test_another_model_is_refused(resolved: tuple[ResolvedScorers, list[Path]], llama: Path, tmp_path: Path) -> None:
    scorers, (one, two) = resolved
    other = tmp_path / "other"
    shutil.copytree(llama, other)
    weights = (other / "model.safetensors").read_bytes()
    (other / "model.safetensors").write_bytes(weights[:-1] + bytes([weights[-1] ^ 1]))
    with pytest.raises(BadInputError, match=r"--model is not what scored the corpus as base .*: weights_sha256 is"):
        adapters_of(Again(3, other, [("law", one), ("law", two)]), scorers, Renderer.from_folder(other))
