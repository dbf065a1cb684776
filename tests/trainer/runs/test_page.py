"""The parts that pages of results share."""

from trainer.runs.page import results_page, shown_command, table, written_by

MACHINE = {
    "date": "2026-01-02", "device": "a processor", "cores": 4, "threads": 2, "cpu_capability": "AVX2",
    "dtype": "float32", "load_average": 0.5, "versions": {"torch": "2.13", "peft": None},
}  # fmt: skip


def test_a_page_begins_with_the_finding_and_ends_with_command_and_machine() -> None:
    lines = results_page("Figures", "It works.", ["| a |", ""], written_by("python -m x", MACHINE)).splitlines()
    assert lines[:5] == ["# Figures", "", "**It works.**", "", "| a |"]
    assert lines[5:9] == ["", "## Command", "", "Written by `python -m x` on 2026-01-02."]
    assert lines[-1].startswith("Machine: a processor, 4 cores, 2 thread(s) used, AVX2, float32; load average 0.5")
    assert lines[-1].endswith("Versions: torch 2.13.")
    assert len(written_by("python -m x")) == 1


def test_a_table_has_a_cell_for_each_column() -> None:
    assert table(["a", "b"], [[1, "x"], [None, 2.5]]) == ["| a | b |", "|---|---|", "| 1 | x |", "|  | 2.5 |"]


def test_a_command_is_shown_without_the_places_of_this_machine() -> None:
    assert shown_command("x run", ["--out", "/a/b/c.md", "d/e"]) == "python -m x run --out c.md d/e"
