import os
from pathlib import Path

import pytest

from api.settings import Settings, load_settings, read_settings_file
from curator.errors import BadInputError


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith("BALLAST_"):
            monkeypatch.delenv(name)


def test_flags_override_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALLAST_PORT", "9000")
    monkeypatch.setenv("BALLAST_HOST", "0.0.0.0")
    settings = load_settings({"port": "9001"})
    assert (settings.port, settings.host, settings.store) == (9001, "0.0.0.0", "./store")


@pytest.mark.parametrize("name", ["PROGRESS", "API_KEY", "MODEL_KEY", "JUDGE_KEY", "SERVER_KEY", "INSPECT_PYTHON"])
def test_variables_of_other_parts_of_the_product_are_left_alone(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"BALLAST_{name}", "0")
    assert load_settings({}) == Settings()


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("MAX_BUILD", "MAX_BUILDS"),
        ("PROT", "PORT"),
        ("TMP_DIR", "TEMP_DIR"),
        ("SQLTIMEOUT", "SQL_TIMEOUT_S"),
        ("QUITE_ANOTHER_THING", "[A-Z_]+"),
    ],
)
def test_a_misspelt_variable_ends_the_start(monkeypatch: pytest.MonkeyPatch, typed: str, meant: str) -> None:
    monkeypatch.setenv(f"BALLAST_{typed}", "1")
    with pytest.raises(BadInputError, match=f"^BALLAST_{typed} is not a setting; the nearest is BALLAST_{meant} "):
        load_settings({})


def test_every_setting_at_fault_is_named_with_its_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALLAST_LOG_LEVEL", "loud")
    with pytest.raises(BadInputError, match=r"--port: .*; BALLAST_LOG_LEVEL: ") as caught:
        load_settings({"port": "70000"})
    assert len(caught.value.details) == 2


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(BadInputError, match="--speed: is not a known key"):
        load_settings({"speed": 1})


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize("by_variable", [True, False])
def test_a_file_is_overridden_by_the_environment_and_that_by_flags(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, by_variable: bool
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("port: 9000\nhost: 0.0.0.0\nmax_builds: 3\nmix_ttl_s: null\n")
    monkeypatch.setenv("BALLAST_PORT", "9001")
    monkeypatch.setenv("BALLAST_HOST", "::1")
    if by_variable:
        monkeypatch.setenv("BALLAST_CONFIG", str(path))
    settings = load_settings({"port": "9002"} if by_variable else {"port": "9002", "config": str(path)})
    assert (settings.port, settings.host, settings.max_builds, settings.mix_ttl_s) == (9002, "::1", 3, None)


def test_a_value_at_fault_in_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("max_builds: 0\n")
    with pytest.raises(BadInputError, match=r"--port: .*; settings file, max_builds: ") as caught:
        load_settings({"port": "x", "config": str(path)})
    assert len(caught.value.details) == 2


def test_an_absent_or_read_only_folder_for_uploads_ends_the_start(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=f"^--temp-dir: no writable folder at {tmp_path}/absent$"):
        load_settings({"temp_dir": str(tmp_path / "absent")})
    assert load_settings({"temp_dir": str(tmp_path)}).temp_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("speed: 1", "no setting 'speed'"),
        ("config: other.yaml", "no setting 'config'"),
        ("- 1", "must map"),
        ("{", "neither YAML"),
        (None, "no such file"),
    ],
)
def test_a_settings_file_that_cannot_be_used(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "settings.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInputError, match=f"(?i){reason}"):
        read_settings_file(path)
