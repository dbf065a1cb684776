import math

import pytest
from pydantic import TypeAdapter, ValidationError

from trainer.config.defences import Schedule, ScheduleField
from trainer.defenses.base import Batch, Defence, StepCounts

ADAPTER: TypeAdapter[Schedule] = TypeAdapter(ScheduleField)


def factors(text: str, steps: list[int], n_steps: int = 100) -> list[float]:
    schedule = ADAPTER.validate_python(text)
    return [schedule.factor(step, n_steps) for step in steps]


def test_shapes() -> None:
    assert factors("constant", [0, 50, 99]) == [1.0, 1.0, 1.0]
    assert factors("linear", [0, 25, 100]) == [1.0, 0.75, 0.0]
    assert factors("linear:10:20:0.5", [0, 10, 15, 20, 90]) == [1.0, 1.0, 0.75, 0.5, 0.5]
    assert factors("cosine:0:40", [0, 10, 20, 40]) == pytest.approx([1.0, (1 + math.cos(math.pi / 4)) / 2, 0.5, 0.0])
    assert factors("linear:::3", [0, 50, 100]) == [1.0, 2.0, 3.0]
    assert factors("window:10:20", [9, 10, 19, 20]) == [0.0, 1.0, 1.0, 0.0]
    assert factors("window:10", [9, 99]) == [0.0, 1.0]


def test_a_window_switches_off_and_the_others_do_not() -> None:
    window, linear = (ADAPTER.validate_python(text) for text in ("window:1:2", "linear:0:1"))
    assert [window.active(step, 5) for step in range(3)] == [False, True, False]
    assert all(linear.active(step, 5) for step in range(5))


@pytest.mark.parametrize("text", ["step", "linear:5:5", "linear:a", "window:1:2:3:4", "cosine:-1"])
def test_bad_schedules_are_refused(text: str) -> None:
    with pytest.raises(ValidationError, match=r"schedule|shape|first_step|valid"):
        ADAPTER.validate_python(text)


def test_the_weight_follows_the_schedule() -> None:
    class Plain(Defence):
        name = "plain"

    import torch

    empty = torch.zeros((1, 1))
    batch = Batch(empty, empty, empty, StepCounts(1, 1, 1), step=5, n_steps=10)
    assert Plain(0.4, Schedule(shape="linear")).weight_at(batch) == pytest.approx(0.2)
    assert Plain(0.4).weight_at(batch) == 0.4
