"""Commands in processes of their own: what a failure says, and what Ctrl-C waits for."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from curator.console import console_started
from trainer.plans.commands import CommandError, Commands, show
from trainer.plans.steps import Step, show_plan


@pytest.mark.parametrize("words", [[], ["--json"]])
def test_a_failing_command_is_an_error_with_its_exit_code(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CommandError, match="exit code 2"):
        Commands().run("curator", "verify", "0" * 32, "--store", "no/such/store", *words)
    assert "no/such/store" in capfd.readouterr().err


@pytest.mark.parametrize("words", ["", ", '--json'"])
def test_ctrl_c_waits_for_the_command_at_hand(tmp_path: Path, words: str) -> None:
    """A terminal's Ctrl-C reaches both; the command takes its time to finish, as a training step does."""
    (tmp_path / "slow.py").write_text("""
import signal, sys, time
from pathlib import Path
here = Path(__file__).parent
def stop(number, frame):
    time.sleep(1.0)
    (here / "finished").touch()
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
(here / "started").touch()
time.sleep(60)
""")
    code = f"""
from trainer.plans.commands import Commands
try:
    Commands().run('slow'{words})
except KeyboardInterrupt:
    raise SystemExit(7)
"""
    paths = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    process = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": paths}, start_new_session=True
    )
    try:
        while not (tmp_path / "started").exists():
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(timeout=30) == 7
        assert (tmp_path / "finished").exists()
    finally:
        process.kill()


def test_a_plan_shows_commands_as_they_were_typed(capsys: pytest.CaptureFixture[str]) -> None:
    steps = [Step("Losses", "curator", ["score", "--corpus", "chats"], note="there: python -m curator import pool.tar")]
    show_plan(steps)
    show("trainer.sft", ["--model", "m"])
    said = capsys.readouterr().out
    assert "  $ python -m curator score --corpus chats\n    there: python -m curator import pool.tar\n" in said
    with console_started(["ballast provision"]):
        show_plan(steps)
        show("trainer.sft", ["--model", "m"])
    said = capsys.readouterr().out
    assert "  $ ballast score --corpus chats\n    there: ballast import pool.tar\n" in said
    assert "  $ ballast train --model m\n" in said
