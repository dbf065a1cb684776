from pathlib import Path

from tests.bench.scoring.validate import (
    measure,
    our_check,
    our_check_and_ids,
    usual_check,
    usual_check_streamed,
    write_chat_rows,
)


def test_both_checks_read_the_same_good_rows(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    assert write_chat_rows(path, 400) == path.stat().st_size
    assert our_check(path) == usual_check(path) == usual_check_streamed(path) == {}
    assert our_check_and_ids(path) == 400


def test_both_checks_find_what_the_usual_one_knows(tmp_path: Path) -> None:
    path = tmp_path / "chat.jsonl"
    answer = '{"role": "assistant", "content": "a"}'
    lines = [
        "[]",
        "{}",
        '{"messages": [{"role": "user", "content": "q"}]}',
        f'{{"messages": [{{"role": "someone", "content": "q"}}, {answer}]}}',
    ]
    path.write_text("\n".join(lines) + "\n")
    assert our_check(path) == usual_check(path)
    assert set(our_check(path)) == {
        "data_type",
        "missing_messages_list",
        "example_missing_assistant_message",
        "unrecognized_role",
    }


def test_a_measurement_names_what_it_measured(tmp_path: Path) -> None:
    found = measure(tmp_path, 200, 1)
    assert set(found["seconds"]) == {"usual_check", "usual_check_streamed", "ours", "ours_with_ids"}
    assert found["ratio"] == found["seconds"]["usual_check"] / found["seconds"]["ours"] > 0
