"""Several processes as one: they join, tell each other of signals, and part."""

import contextlib
import json
import threading
import time
from collections.abc import Callable

import jax
from jax.experimental import multihost_utils

from llc_jax.training.lifelines import Lifelines, relay
from llc_jax.training.roll_call import NotConnected, call_roll
from llc_jax.training.schedulers import Job

# The keys in JAX's coordination service.
_NOTICE, _EVENTS, _PARTING = "llc_jax/notice", "llc_jax/events", "llc_jax/parting"
_LISTENING_SECONDS, _AGREEING_SECONDS = 3600, 60
# How JAX's coordination service, and collectives, say that a process cannot be reached.
_SIGNS_OF_LOSS = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "ABORTED", "CANCELLED", "Gloo", "NCCL")


def join(job: Job, timeout: int, on_loss: Callable[[str], None]) -> "Cluster | None":
    """Connects the processes of a run.

    Args:
      job: which processes there are.
      timeout: seconds to wait for the others.
      on_loss: called from another thread, with a message, where a process is lost.

    Returns:
      The cluster, or None for a single process.

    Raises:
      InputError: if the processes were told different things.
      NotConnected: if one does not come in time.
    """
    connections = call_roll(job.coordinator, job.num_processes, job.process_id, timeout)
    if job.num_processes == 1:
        return None
    lifelines = Lifelines(connections)
    lifelines.watch(lambda process, *how: on_loss(_lost(f"Process {process}", *how)))
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # Its handler would take SIGTERM; it knows of neither SIGINT nor what is not training.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            relay(job.coordinator) if job.process_id else job.coordinator,
            job.num_processes,
            job.process_id,
            local_device_ids=job.devices,
            cluster_detection_method="deactivate",  # It would give each process one GPU.
            initialization_timeout=timeout,
            # JAX ends all processes of a machine that has slept; lifelines tell sleep from death.
            heartbeat_timeout_seconds=_LISTENING_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        raise NotConnected(
            f"The processes cannot be connected at {job.coordinator} ({_reason(error)})."
        ) from error
    return Cluster(lifelines, on_loss)


class Cluster:
    """The processes of a run, as JAX's coordination service connects them.

    Args:
      lifelines: to the other processes.
      on_loss: called with a message where JAX finds that a process is lost.
    """

    def __init__(self, lifelines: Lifelines, on_loss: Callable[[str], None]):
        self._lifelines, self._on_loss = lifelines, on_loss
        # JAX has no public name for the client of its coordination service.
        state = multihost_utils.distributed.global_state
        self._client, self._index = state.client, state.process_id

    def announce(self, number: int) -> None:
        """Tells all processes of a signal; the first thing that is announced counts."""
        self._announce({"signal": number})

    def announce_failure(self, status: int, message: str) -> None:
        """Tells all processes that this one ends with an error and that exit status."""
        self._announce({"status": status, "failure": f"Process {self._index}: {message}"})

    def announce_loss(self, message: str) -> None:
        """Tells the processes that are left, where this one alone may know of a loss."""
        if self._index == 0:
            self._announce({"status": 1, "failure": message})
            time.sleep(1.5)  # It takes the coordination service with it: they speak before.

    def listen(
        self,
        on_signal: Callable[[int], None],
        on_failure: Callable[[int, str], None],
    ) -> None:
        """Waits for what is announced, in a thread of its own, and hands it on.

        Args:
          on_signal: called with the number of a signal to any process.
          on_failure: called with an exit status and a message where a process ends with an
            error.
        """

        def wait() -> None:
            try:
                notice = self._wait_for_notice()
                if "signal" in notice:
                    on_signal(notice["signal"])
                elif "failure" in notice:
                    on_failure(notice["status"], notice["failure"])
            except jax.errors.JaxRuntimeError as error:
                self._on_loss(_lost("Another process", cause=_reason(error)))

        threading.Thread(target=wait, name="notices", daemon=True).start()

    def loss(self, error: Exception) -> str | None:
        """Says that a process is lost, if that is why JAX raised an error; None otherwise."""
        raised_by_jax = isinstance(error, jax.errors.JaxRuntimeError | ValueError)
        is_loss = raised_by_jax and any(word in str(error) for word in _SIGNS_OF_LOSS)
        return _lost("Another process", cause=_reason(error)) if is_loss else None

    def latest(self, events: int) -> int:
        """Returns the greatest number of events that any process has counted."""
        self._client.key_value_set(f"{_EVENTS}/{self._index}", str(events))
        self._client.wait_at_barrier(_EVENTS, _AGREEING_SECONDS * 1000)
        return max(int(count) for _, count in self._client.key_value_dir_get(_EVENTS))

    def part(self, seconds: float) -> bool:
        """Leaves the cluster together with all others, if they come within this time.

        Returns:
          Whether they came.
        """
        try:
            self._client.wait_at_barrier(_PARTING, int(seconds * 1000))
            jax.distributed.shutdown()
        except jax.errors.JaxRuntimeError:
            if self._index == 0:
                time.sleep(1.0)  # Without this process the others could not tell why they end.
            return False
        self._lifelines.say_goodbye()
        return True

    def _announce(self, notice: dict) -> None:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # There is an earlier one.
            self._client.key_value_set(_NOTICE, json.dumps(notice))

    def _wait_for_notice(self) -> dict:
        """Returns the notice, which is empty when this process has left the cluster."""
        while True:
            try:
                return json.loads(
                    self._client.blocking_key_value_get(_NOTICE, _LISTENING_SECONDS * 1000)
                )
            except jax.errors.JaxRuntimeError as error:
                if "CANCELLED" in str(error):
                    return {}
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise


def _lost(process: str, host: str = "", cause: str = "") -> str:
    place, reason = host and f" at {host}", cause and f" ({cause})"
    return (
        f"{process}{place} of the run has ended, or cannot be reached{reason}. Start all again: "
        "the same commands continue from the last checkpoint."
    )


def _reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0].rstrip(".")
