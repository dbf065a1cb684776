import pytest

from api.settings import Settings, load_settings
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
