"""Requests to stop a run, as tests make them."""

from llc_jax.training.preemption import StopRequest


class StopAfter(StopRequest):
    """A request that comes once so many steps are taken."""

    def __init__(self, steps):
        super().__init__()
        self._left = steps

    def after_step(self):
        self._left -= 1
        if self._left == 0:
            self.receive(15)
        return super().after_step()
