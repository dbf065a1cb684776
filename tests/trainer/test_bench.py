import json
from pathlib import Path

import pytest

from trainer import bench

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
    assert set(result["preparation_s"]) == {"ours, first start", "ours, with the render cache", "TRL"}
    assert result["sizes"]["rows"] == 30
    lines = bench.table(result)
    assert lines[2].startswith("| plain TRL | ")
    assert any(line.startswith("30 rows ready, TRL: ") for line in lines)


def test_unknown_variants_are_refused(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--model", str(llama), "--only", "none,lora"]) == 2
    assert "no variant lora; there are none, kl, ldifs" in capsys.readouterr().err
