from pathlib import Path

import pytest

from api.settings import Settings, load_settings, read_settings_file
from curator.errors import BadInputError


def test_flags_override_the_environment_and_unset_flags_do_not() -> None:
    settings = load_settings({"BALLAST_PORT": "9000", "BALLAST_HOST": "0.0.0.0"}, {"port": "9001", "host": None})
    assert (settings.port, settings.host, settings.store) == (9001, "0.0.0.0", "./store")


def test_variables_of_other_parts_of_the_product_are_left_alone() -> None:
    assert load_settings({"BALLAST_PROGRESS": "0"}, {}) == Settings()


def test_every_setting_at_fault_is_named_with_its_source() -> None:
    with pytest.raises(BadInputError, match=r"(?s)--port: .*BALLAST_LOG_LEVEL: ") as caught:
        load_settings({"BALLAST_LOG_LEVEL": "loud"}, {"port": "70000"})
    assert len(caught.value.details) == 2


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(BadInputError, match="speed"):
        load_settings({}, {"speed": 1})


def test_every_setting_is_described() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_a_file_is_overridden_by_the_environment_and_that_by_flags(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("port: 9000\nhost: 0.0.0.0\nmax_builds: 3\nmix_ttl_s: null\n")
    settings = load_settings(
        {"BALLAST_PORT": "9001", "BALLAST_HOST": "::1"}, {"port": "9002"}, read_settings_file(path)
    )  # fmt: skip
    assert (settings.port, settings.host, settings.max_builds, settings.mix_ttl_s) == (9002, "::1", 3, None)
    with pytest.raises(BadInputError, match=r"--port: .*; settings file, max_builds: ") as caught:
        load_settings({}, {"port": "x"}, {"max_builds": 0})
    assert len(caught.value.details) == 2


@pytest.mark.parametrize(
    ("text", "reason"),
    [("speed: 1", "no setting 'speed'"), ("- 1", "must map"), ("{", "neither YAML"), (None, "no such file")],
)
def test_a_settings_file_that_cannot_be_used(tmp_path: Path, text: str | None, reason: str) -> None:
    path = tmp_path / "settings.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(BadInputError, match=f"(?i){reason}"):
        read_settings_file(path)
