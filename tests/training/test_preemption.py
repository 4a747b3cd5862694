import contextlib
import os
import random
import signal
import threading
import time

import pytest

from llc_jax.training.preemption import Stopped, StopRequest


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_second_one_counts(number):
    before = signal.getsignal(number)
    request = StopRequest()
    with pytest.raises(Stopped) as stopped, request.training():
        assert not request.after_step()
        os.kill(os.getpid(), number)
        assert request.after_step()
        assert signal.getsignal(number) == before
    assert stopped.value.signal == request.signal == number
    assert signal.getsignal(number) == before


def test_outside_of_training_the_program_ends_at_once():
    left = []
    request = StopRequest(left.append)
    with request.training():
        assert not request.after_step()
    assert not left
    request.receive(signal.SIGTERM)
    assert left == [signal.SIGTERM]


def test_before_the_first_step_the_program_ends_at_once():
    left = []
    request = StopRequest(left.append)
    with pytest.raises(Stopped), request.training():
        request.receive(signal.SIGTERM)
        assert left == [signal.SIGTERM]


class Wires:
    """Connects stop requests in threads, as a cluster connects those of its processes."""

    def __init__(self, count):
        self._barrier = threading.Barrier(count)
        self._events, self._once, self._announced = [], threading.Lock(), False
        self.requests = []

    def announce(self, number):
        with self._once:
            if self._announced:
                return
            self._announced = True
        for request in self.requests:
            threading.Thread(target=request.follow, args=(number,), daemon=True).start()

    def latest(self, events):
        self._events.append(events)
        self._barrier.wait(timeout=30)
        return max(self._events)


class Process:
    """A process that trains stages in step with others, and is stopped by a signal."""

    def __init__(self, wires, in_step):
        self.request = StopRequest(leave=self._leave)
        self.request.join(wires)
        wires.requests.append(self.request)
        self._in_step = in_step
        self.ended, self.saved_after = threading.Event(), None

    def _leave(self, number):
        self.ended.set()
        threading.Event().wait()  # The process is no more: its lock stays locked.

    def run(self, stages, steps):
        with contextlib.suppress(Stopped):
            for stage in range(stages):
                with self.request.training():
                    for step in range(steps):
                        self._in_step.wait()
                        time.sleep(random.uniform(0, 0.002))
                        if self.request.after_step():
                            self.saved_after = (stage, step)
                            raise Stopped("", self.request.signal)
                time.sleep(random.uniform(0, 0.01))
        self.ended.set()


@pytest.mark.parametrize("seed", range(12))
def test_processes_stop_after_the_same_step(seed):
    random.seed(seed)
    count = 3
    wires, in_step = Wires(count), threading.Barrier(count)
    processes = [Process(wires, in_step) for _ in range(count)]
    for process in processes:
        threading.Thread(target=process.run, args=(4, 5), daemon=True).start()
    for _ in range(random.choice([1, 2])):
        time.sleep(random.uniform(0, 0.05))
        random.choice(processes).request.receive(signal.SIGTERM)
    assert all(process.ended.wait(timeout=20) for process in processes)
    assert len({process.saved_after for process in processes}) == 1
