import pytest

from llc_jax.training import loop
from llc_jax.training.loop import Timetable


@pytest.mark.parametrize(
    ("examples", "batch", "epochs"), [(100, 10, 3), (899, 64, 2), (50_000, 128, 15), (7, 7, 4)]
)
def test_epochs_end_with_the_step_that_completes_them(examples, batch, epochs):
    timetable = Timetable(examples, batch, epochs)
    ends = timetable.epoch_ends
    assert list(ends.values()) == list(range(1, epochs + 1))
    assert max(ends) == timetable.num_steps
    for step, epoch in ends.items():
        # The next step would take the first image of the next epoch, or share it.
        assert step * batch <= epoch * examples < (step + 1) * batch


def test_the_clock_leaves_out_compiling_and_what_lies_between_epochs(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    clock = loop._Clock(batch_size=10)

    def start(at):
        now[0] = at
        clock.start()

    def tick(at):
        now[0] = at
        return clock.tick()

    start(60.0)  # Compiled for a minute.
    assert tick(62.0) == 5
    assert tick(64.0) == 5
    clock.restart()  # The last step of the epoch is still to be ticked off.
    start(100.0)
    assert tick(100.0) == 5
    assert tick(101.0) == 10


@pytest.mark.parametrize(
    ("least", "every", "saved"),
    [
        (0, 0, [10, 20, 30, 40, 50, 60, 70]),
        (10, 0, [10, 20, 30, 40, 50, 60, 70]),
        (25, 0, [30, 60, 70]),
        (25, 20, [20, 30, 40, 60, 70]),
        (1000, 0, [70]),
    ],
)
def test_checkpoints_are_far_enough_apart(least, every, saved):
    timetable = Timetable(40, 4, 7, checkpoint_steps=every, min_checkpoint_steps=least)
    assert [step for step in range(1, 71) if timetable.saves_after(step)] == saved
