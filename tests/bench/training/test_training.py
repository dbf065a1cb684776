import json
from pathlib import Path

import pytest

from curator.scoring.identity import weights_sha256
from tests.bench.training import command as bench

TINY = ["--steps", "1", "--repeats", "1", "--batch-size", "2", "--rows", "30", "--words", "6", "--threads", "1"]


@pytest.mark.slow
def test_it_measures_every_part(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--model", str(llama), *TINY, "--clock", "cpu", "--json", "--only", "none,kl,steering,gating"]
    assert bench.main(command) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result["step_s"]) == {"plain TRL", "none", "kl", "steering", "gating", "reference forward"}
    assert all(value > 0 for value in result["step_s"].values())
    assert result["step_ratio"]["plain TRL"] == 1.0
    plain, kl, reference = (result["step_s"][name] for name in ("plain TRL", "kl", "reference forward"))
    assert result["extra_over_reference_in_plain_steps"] == {"kl": pytest.approx((kl - plain - reference) / plain)}
    assert result["peak_mib"].keys() == {"plain TRL", "kl"}
    names = {"ours, first start", "ours, with the render cache", "TRL", "TRL, loss on every token"}
    assert set(result["preparation_s"]) == set(result["preparation_cpu_s"]) == names
    assert {len(runs) for runs in result["preparation_runs"].values()} == {1}
    assert result["parts"]["preparation"]["sizes"]["rows"] == 30
    lines = bench.lines_of(result)
    assert any(line.startswith("| plain TRL | ") and line.endswith("| 1.000x |") for line in lines)
    assert any(line.startswith("- 30 rows ready, TRL: ") for line in lines)


def test_figures_stand_beside_their_aims_and_kept_parts_are_not_measured_again(llama: Path, tmp_path: Path) -> None:
    """Known seconds: what is met, what is missed, and a page without this machine's paths."""
    steps = {"plain TRL": 2.0, "none": 2.1, "kl": 3.2, "steering": 2.4, "reference forward": 0.5}
    machine = {"date": "2026-01-02", "device": "cpu", "cores": 2, "cpu_capability": "AVX512", "dtype": "float32",
               "load_average": 1.0, "versions": {"torch": "2"}}  # fmt: skip
    sizes = {"steps": 1, "repeats": 1, "batch_size": 2, "rows": 30, "words": 6, "threads": 1, "clock": "cpu"}
    entry = {"sizes": sizes, "machine": machine}
    keep = tmp_path / "keep.json"
    kept = {
        "weights_sha256": weights_sha256(llama), "parts": dict.fromkeys(bench.PARTS, entry), "step_s": steps,
        "peak_mib": {"plain TRL": 100.0, "kl": 114.0},
        "preparation_s": {"ours, first start": 2.0, "ours, with the render cache": 0.1, "TRL": 4.0},
    }  # fmt: skip
    keep.write_text(json.dumps(kept))
    out = tmp_path / "page.md"
    assert bench.main(["--model", str(llama), "--keep", str(keep), "--out", str(out)]) == 0
    page = out.read_text()
    for line in (
        "| none: step, times plain TRL | 1.050 | <= 1.05 | yes |",
        "| steering: step, times plain TRL | 1.200 | <= 1.1 | no |",
        "| kl: extra over the reference forward, in plain steps | 0.350 | <= 0.3 | no |",
        "| kl: peak memory, times plain TRL | 1.140 | <= 1.15 | yes |",
        "| data preparation, ours, first start: times faster than TRL | 2.000 | >= 5 | no |",
        "| data preparation, ours, with the render cache: times faster than TRL | 40.000 | >= 20 | yes |",
        "- 30 rows ready, TRL: 4.00 s",
    ):
        assert line in page
    assert str(tmp_path) not in page
    keep.write_text(json.dumps(kept | {"weights_sha256": "0" * 64}))
    assert bench.main(["--model", str(llama), "--keep", str(keep)]) == 2


def test_unknown_variants_are_refused(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--model", str(llama), "--only", "none,lora"]) == 2
    assert "no variant lora; there are none, kl, ldifs" in capsys.readouterr().err
