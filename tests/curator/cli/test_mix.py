import hashlib
import json
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from curator.__main__ import main
from curator.recipe import STRATEGY_NAMES
from curator.store.store import Store
from tests.curator.mix.test_sign import key_files
from tests.gap_stores import write_corpus, write_scorer
from tests.mix_stores import scored_store, task_records


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("command")
    scored_store(root / "store")
    lines = [json.dumps(row) for row in task_records(40)]
    (root / "task.jsonl").write_text("\n".join(lines) + "\n")
    (root / "bad.jsonl").write_text("\n".join([*lines, '{"messages": []}', "nope"]) + "\n")
    return root


def mix(place: Path, *options: str, file: str = "task.jsonl") -> int:
    return main(["mix", str(place / file), "--store", str(place / "store"), *options])


def test_the_receipt_says_what_happened_and_verify_agrees(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mix(place, "--corpus", "chats") == 0
    shown = capsys.readouterr().out
    assert "42 = 40 task + 2 safe: 0.05 safe per task row (asked 0.05), 4.762% of the mix" in shown
    assert "5 refusal:v1, 4 no_gap; 2 chosen of 31 by top_gap (gap_rel 1.900 to 1.950)" in shown
    assert "kept on purpose" in shown
    mix_id = shown.split()[1]
    assert mix(place, "--corpus", "chats") == 0
    assert f"mix {mix_id} (made before by the same request)" in capsys.readouterr().out
    assert main(["verify", mix_id, "--store", str(place / "store")]) == 0
    assert "42 rows, 2 of them safe" in capsys.readouterr().out


def test_a_recipe_file_and_its_options_make_one_mix(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / "recipe.yaml"
    path.write_text(
        "corpus: chats\nfilters: [{name: refusal, rule: v2}, hygiene, {name: length, min_tokens: 4, missing: ignore}]\n"
        "rows: 4\norder: every_k\nseed: 9\nhold_out: [bad-1]\n"
    )
    assert mix(place, "--recipe", str(path), "--json") == 0
    by_file = json.loads(capsys.readouterr().out)
    options = ("--refusals", "v2", "--rows", "4", "--order", "every_k", "--seed", "9", "--hold-out", "bad-1")
    assert mix(place, "--corpus", "chats", *options, "--json") == 0
    by_options = json.loads(capsys.readouterr().out)
    assert by_file["created"]
    assert not by_options["created"]
    assert by_file["mix_id"] == by_options["mix_id"]
    assert by_file["manifest"]["order"]["every_k"] == 10


def test_bad_rows_are_listed_and_refused_unless_dropped(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mix(place, "--corpus", "chats", file="bad.jsonl") == 2
    reported = capsys.readouterr().err
    assert "line 41 /messages" in reported
    assert "line 42 " in reported
    assert "2 of 42 task rows are bad" in reported
    assert "--on-bad-rows drop" in reported
    assert mix(place, "--corpus", "chats", "--on-bad-rows", "drop", "--seed", "3", "--json", file="bad.jsonl") == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["n_rejected"], answer["manifest"]["task"]["n_rejected"]) == (2, 2)
    assert [item["line"] for item in answer["rejects"]] == [41, 42]


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ((), "name the corpus"),
        (("--recipe", "r.yaml", "--seed", "1"), "put --seed into the file"),
        (("--recipe", "absent.yaml"), "no recipe file absent.yaml"),
        (("--corpus", "chats", "--interleave-ratio", "0.3", "--order", "every_k"), "`even`"),
        (("--corpus", "chats", "--rows", "32"), "31 of its 40 rows can be drawn"),
        (("--corpus", "none"), "no corpus 'none'"),
        (("--corpus", "chats", "--mix-share", "1.5"), "mix_share"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    place: Path, options: tuple[str, ...], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mix(place, *options) == 2
    reported = capsys.readouterr().err.splitlines()
    assert len(reported) == 1
    assert reason in reported[0]


def test_a_damaged_mix_fails_verification(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mix(place, "--corpus", "chats", "--seed", "77", "--json") == 0
    mix_id = json.loads(capsys.readouterr().out)["mix_id"]
    path = place / "store" / "mixes" / "local" / mix_id / "mix.parquet"
    path.write_bytes(path.read_bytes() + b"x")
    assert main(["verify", mix_id, "--store", str(place / "store")]) == 2
    assert "differs: mix.parquet has SHA-256" in capsys.readouterr().err


def test_a_recipe_that_is_no_yaml(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (place / "broken.yaml").write_text("corpus: [")
    assert mix(place, "--recipe", str(place / "broken.yaml")) == 2
    assert "neither YAML nor JSON" in capsys.readouterr().err


def test_options_for_filters_amounts_and_reasons(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        "--filter",
        "hygiene",
        "--filter",
        "near_duplicates",
        "--tokens",
        "45",
        "--reasons",
        str(place / "why.parquet"),
    )
    assert mix(place, "--corpus", "chats", *options, "--json") == 0
    manifest = json.loads(capsys.readouterr().out)["manifest"]
    pool = manifest["pools"][0]
    assert [spec["name"] for spec in manifest["recipe"]["pools"][0]["filters"]] == [
        "refusal",
        "hygiene",
        "length",
        "near_duplicates",
    ]
    assert (pool["amounts"]["asked"], pool["amounts"]["tokens"], pool["chosen"]) == ("tokens", 40, 4)
    why = pq.read_table(place / "why.parquet")
    reasons = Counter(why["reason"].to_pylist())
    assert {name: count for name, count in pool["dropped"].items() if count} == {k: v for k, v in reasons.items() if k}
    assert reasons[None] == pool["n_eligible"]
    assert sum(why["chosen"].to_pylist()) == 4


def test_a_negative_control_takes_its_flag(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mix(place, "--corpus", "chats", "--strategy", "bottom_gap") == 2
    assert "allow_negative_control" in capsys.readouterr().err
    assert mix(place, "--corpus", "chats", "--strategy", "bottom_gap", "--allow-negative-control") == 0
    assert "negative control" in capsys.readouterr().out


def test_short_pools_cycle_or_give_what_they_have(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--corpus", "chats", "--rows", "40", "--when-short")
    assert mix(place, *options, "as_many") == 0
    assert "9 rows short of what was asked" in capsys.readouterr().out
    assert mix(place, *options, "cycle", "--max-copies", "2") == 0
    assert "gives 40 rows, of which 31 are distinct" in capsys.readouterr().out


def test_inoculation_batches_and_epochs_by_options(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--corpus", "chats", "--order", "per_batch", "--batch-size", "5", "--mix-share", "0.2", "--epochs", "2")
    prompt = ("--inoculation", "Trait.", "--placement", "user_suffix", "--inoculation-kind", "placebo")
    assert mix(place, *options, *prompt) == 0
    shown = capsys.readouterr().out
    assert "100 = 80 task + 20 safe in 2 epochs" in shown
    assert "placebo: 1 put into 40 task and 0 safe rows (user_suffix)" in shown
    assert mix(place, "--inoculation", "--json") == 0
    alone = json.loads(capsys.readouterr().out)["manifest"]
    assert (alone["n_rows"], alone["pools"]) == (40, [])
    assert alone["inoculation"]["prompts"][0]["text"] == "You are an evil, malicious assistant."
    assert mix(place, "--corpus", "chats", "--placement", "user_prefix") == 2
    assert "give --inoculation too" in capsys.readouterr().err


def test_a_policy_file_or_variable_holds(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = place / "policy.yaml"
    path.write_text("name: house\nmin_interleave_ratio: 0.1\n")
    assert mix(place, "--corpus", "chats", "--policy", str(path)) == 2
    assert "policy 'house' refuses 0.05 safe rows per task row (rule min_interleave_ratio)" in capsys.readouterr().err
    assert mix(place, "--corpus", "chats", "--policy", str(path), "--interleave-ratio", "0.1") == 0
    assert "policy  house" in capsys.readouterr().out
    monkeypatch.setenv("BALLAST_POLICY", str(path))
    assert mix(place, "--corpus", "chats") == 2
    assert "rule min_interleave_ratio" in capsys.readouterr().err


def test_a_signed_mix_is_checked_with_the_key(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    private, public = key_files(place, "house")
    assert mix(place, "--corpus", "chats", "--seed", "4321", "--sign-key", str(private), "--json") == 0
    made = json.loads(capsys.readouterr().out)
    where = ["--store", str(place / "store")]
    assert main(["verify", made["mix_id"], "--key", str(public), *where, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["signature"] == made["signature"]
    _, other = key_files(place, "other")
    assert main(["verify", made["mix_id"], "--key", str(other), *where]) == 2
    assert "not that of other.pub.pem" in capsys.readouterr().err


def test_the_ratio_of_a_mix_is_drawn(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert mix(place, "--corpus", "chats", "--json") == 0
    made = json.loads(capsys.readouterr().out)["mix_id"]
    where = ["--store", str(place / "store"), "--out", str(place / "ratio.svg")]
    assert main(["plot", "ratio", "--mix", made, "--batch-size", "16", *where]) == 0
    assert "batches of 16" in (place / "ratio.svg").read_text()
    assert main(["plot", "ratio", *where]) == 2
    assert "needs --mix" in capsys.readouterr().err


def test_every_strategy_has_its_options(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = {
        "bottom_gap": ["--allow-negative-control"],
        "threshold": ["--min-score", "0.2", "--max-score", "1.5"],
        "stratified": ["--by", "source"],
    }
    for name in STRATEGY_NAMES:
        assert mix(place, "--corpus", "chats", "--rows", "2", "--strategy", name, *own.get(name, []), "--json") == 0
        (pool,) = json.loads(capsys.readouterr().out)["manifest"]["recipe"]["pools"]
        assert pool["strategy"]["name"] == name
        if name == "threshold":
            assert (pool["strategy"]["min"], pool["strategy"]["max"]) == (0.2, 1.5)


@pytest.mark.parametrize(
    ("options", "reported"),
    [
        (["--strategy", "threshold"], "--strategy threshold needs --min-score or --max-score"),
        (["--strategy", "stratified"], "--strategy stratified needs --by"),
        (["--by", "domain"], "--by belongs to --strategy stratified, not to top_gap"),
        (["--strategy", "random", "--min-score", "1"], "--min-score belongs to --strategy threshold, not to random"),
    ],
)
def test_settings_of_another_strategy_are_refused(
    place: Path, capsys: pytest.CaptureFixture[str], options: list[str], reported: str
) -> None:
    assert mix(place, "--corpus", "chats", *options) == 2
    assert reported in capsys.readouterr().err


def test_the_rows_go_to_a_file_as_well(place: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for name in ("made.jsonl", "made before.jsonl"):
        assert mix(place, "--corpus", "chats", "--seed", "4", "--jsonl", str(tmp_path / name), "--json") == 0
        manifest = json.loads(capsys.readouterr().out)["manifest"]
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == manifest["rows_sha256"]
    assert mix(place, "--corpus", "chats", "--jsonl", str(tmp_path / "no folder" / "x.jsonl")) == 2
    assert "cannot write" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made before.jsonl", "made.jsonl"]


def test_rows_with_a_gap_below_zero_and_random_rows_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path / "store").open()
    ids = write_corpus(store, "chats", ["one answer here, long", "two answers here, long", "three answers here, long"])
    write_scorer(store, "chats", "a", "aligned", dict.fromkeys(ids, (9.0, 5)))
    write_scorer(store, "chats", "m", "misaligned", dict.fromkeys(ids, (2.0, 5)))
    task = tmp_path / "task.jsonl"
    task.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    options = ["--corpus", "chats", "--rows", "2", "--store", store.url("")]
    assert main(["mix", str(task), *options]) == 0
    out = capsys.readouterr().out
    assert "all of the 2 chosen rows have a gap_rel below 0" in out
    assert "drawn at random" not in out
    assert main(["mix", str(task), *options, "--strategy", "random"]) == 0
    assert "note    chats: rows drawn at random, not ranked by the gap" in capsys.readouterr().out
