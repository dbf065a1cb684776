"""The scripts in examples/ run, with a recorder in the place of python: what they start is what the command takes."""

import argparse
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from curator.cli import score
from curator.scoring.shards import Shard

EXAMPLES = Path(__file__).parents[3] / "examples"
RECORDER = """#!/bin/bash
printf '%s\\n' "${CUDA_VISIBLE_DEVICES:-}" "$@" > "$RECORDED/$$"
exit "${EXIT_WITH:-0}"
"""


def run_script(tmp_path: Path, command: list[str], variables: dict[str, str], code: int = 0) -> list[list[str]]:
    """What the script started, each as [visible GPUs, argument, ...]."""
    tools, recorded = tmp_path / "tools", tmp_path / "recorded"
    tools.mkdir()
    recorded.mkdir()
    (tools / "python").write_text(RECORDER)
    (tools / "python").chmod(0o755)
    environment = {"PATH": f"{tools}{os.pathsep}/usr/bin{os.pathsep}/bin", "RECORDED": str(recorded), **variables}
    assert subprocess.run(command, env=environment, check=False, timeout=60).returncode == code
    return [path.read_text().splitlines() for path in recorded.iterdir()]


def parsed(arguments: list[str]) -> argparse.Namespace:
    """By the command's own parser."""
    assert arguments[:3] == ["-m", "curator", "score"]
    parser = argparse.ArgumentParser(exit_on_error=False)
    score.add_parser(parser.add_subparsers())
    return parser.parse_args(arguments[2:])


def test_each_job_of_the_slurm_array_scores_its_shard(tmp_path: Path) -> None:
    script = EXAMPLES / "slurm.sbatch"
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", script.read_text(), re.M))
    first, last = map(int, options["array"].split("-"))
    own = ["--model", str(tmp_path), "--role", "misaligned", "--domain", "bad advice"]
    shards = []
    for task in range(first, last + 1):
        place = tmp_path / str(task)
        place.mkdir()
        variables = {"BALLAST_STORE": "/shared/my store", "CORPUS": "chats", "SLURM_ARRAY_TASK_ID": str(task)}
        ((_, *arguments),) = run_script(place, ["bash", str(script), *own], variables)
        args = parsed(arguments)
        assert (args.store, args.corpus, args.domain) == ("/shared/my store", "chats", "bad advice")
        shards.append(args.shard)
    assert shards == [f"{index}/{last}" for index in range(1, last + 1)]


def test_a_slurm_job_without_a_store_says_so(tmp_path: Path) -> None:
    started = run_script(tmp_path, ["bash", str(EXAMPLES / "slurm.sbatch")], {"CORPUS": "chats"}, code=1)
    assert not started


@pytest.mark.parametrize("fails", [False, True])
def test_each_gpu_of_a_skypilot_job_scores_its_shard(tmp_path: Path, fails: bool) -> None:
    task: dict[str, Any] = yaml.safe_load((EXAMPLES / "sky.yaml").read_text())
    assert {"name", "num_nodes", "workdir", "resources", "envs", "setup", "run"} == set(task)
    nodes, gpus = task["num_nodes"], int(task["resources"]["accelerators"].partition(":")[2])
    found = []
    for rank in range(nodes):
        place = tmp_path / str(rank)
        place.mkdir()
        variables = task["envs"] | {
            "SKYPILOT_NODE_RANK": str(rank), "SKYPILOT_NUM_NODES": str(nodes), "SKYPILOT_NUM_GPUS_PER_NODE": str(gpus),
            "MODEL": str(tmp_path), "EXIT_WITH": "3" if fails else "0",
        }  # fmt: skip
        started = run_script(place, ["bash", "-c", task["run"]], variables, code=3 if fails else 0)
        assert sorted(gpu for gpu, *_ in started) == [str(gpu) for gpu in range(gpus)]
        found += [parsed(arguments) for _, *arguments in started]
    assert {(args.store, args.corpus, args.role) for args in found} == {("s3://bucket/store", "chats", "aligned")}
    shards = sorted((Shard.parse(args.shard) for args in found), key=lambda shard: shard.index)
    assert shards == [Shard(index, nodes * gpus) for index in range(1, nodes * gpus + 1)]
