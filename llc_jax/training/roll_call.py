"""The processes of a run meet and compare what they were told, before JAX connects them.

JAX itself ends a process with a stack trace of C++ where another one does not come, and goes
on where they disagree about their number.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterable
from typing import Any

from llc_jax.errors import InputError

_PAUSE = 0.2  # Seconds between attempts to reach process 0.
_LINE_BYTES = 4096  # More than any message has.


class NotConnected(RuntimeError):
    """The processes of a run do not find each other; started again, they may."""


def call_roll(
    address: str, num_processes: int, process_id: int, timeout: float
) -> dict[int, socket.socket]:
    """Waits until all processes are there and agree.

    Args:
      address: host:port; process 0 listens at the port, and the others call it.
      num_processes: of the run.
      process_id: of this process.
      timeout: seconds to wait for the others.

    Returns:
      The connections on which they have spoken, which are open: those of process 0 to all
      others, by their ids, and that of another to process 0.

    Raises:
      InputError: if a process was told another number of processes, or has the id of another; in
        all processes that have come.
      NotConnected: in them, if another does not come in time; or if process 0 cannot listen.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise InputError(
            f"--coordinator={address} is no address: give HOST:PORT of process 0, or auto."
        )
    if not 0 <= process_id < num_processes:
        raise InputError(
            f"--process_id={process_id} is not one of {num_processes} processes: "
            f"choose 0 to {num_processes - 1}."
        )
    if num_processes == 1:
        return {}
    if process_id == 0:
        return _answer(int(port), num_processes, timeout)
    report = {"process_id": process_id, "num_processes": num_processes}
    return {0: _report(host.strip("[]"), int(port), report, timeout)}


def _answer(port: int, num_processes: int, timeout: float) -> dict[int, socket.socket]:
    """Hears the reports of the other processes, and tells them whether the run begins."""
    deadline = time.monotonic() + timeout
    present: dict[int, socket.socket] = {}
    # The port is free for JAX as soon as nothing listens there.
    with _listen(port) as server, contextlib.ExitStack() as stack:
        refusal, absence = None, None
        while not (refusal or absence) and len(present) < num_processes - 1:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                caller, _ = server.accept()
            except TimeoutError:
                absence = _absence(range(1, num_processes), present, num_processes, timeout)
                break
            report = _receive(caller, timeout=5.0)
            if report is None or report.keys() != {"process_id", "num_processes"}:
                caller.close()
                continue
            stack.enter_context(caller)
            refusal = _disagreement(report, present, num_processes)
            # A caller who is refused hears why, too.
            present[-1 if refusal else report["process_id"]] = caller
        for caller in present.values():
            _send(caller, {"refusal": refusal, "absence": absence})
        _check(refusal, absence)
        stack.pop_all()
        return present


def _report(host: str, port: int, report: dict[str, int], timeout: float) -> socket.socket:
    """Calls process 0, and hears whether the run begins."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            caller = socket.create_connection((host, port), timeout=5.0)
            break
        except OSError as error:
            if time.monotonic() > deadline:
                raise NotConnected(
                    f"Process 0 was not found at --coordinator={host}:{port} within "
                    f"{timeout:g} s ({error.strerror or error}): start it, or wait longer with "
                    "--initialization_timeout."
                ) from error
            time.sleep(_PAUSE)
    with contextlib.ExitStack() as stack:
        stack.enter_context(caller)
        _send(caller, report)
        # Process 0 may have come later than this process, and waits as long.
        answer = _receive(caller, timeout=timeout + 10.0)
        if answer is None or answer.keys() != {"refusal", "absence"}:
            raise NotConnected(
                f"What listens at --coordinator={host}:{port} is not process 0 of this run, or "
                "has ended: choose a free port, and start all processes again."
            )
        _check(**answer)
        stack.pop_all()
    return caller


def _check(refusal: str | None, absence: str | None) -> None:
    if refusal:
        raise InputError(refusal)
    if absence:
        raise NotConnected(absence)


def _listen(port: int) -> socket.socket:
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=dual)
    except OSError as error:
        raise NotConnected(
            f"Process 0 cannot listen at port {port} of --coordinator "
            f"({os.strerror(error.errno)}): choose a free port."
        ) from error


def _absence(
    expected: Iterable[int], present: Iterable[int], num_processes: int, timeout: float
) -> str:
    missing = [str(process) for process in expected if process not in present]
    names = ", ".join(missing[:10]) + (", ..." if len(missing) > 10 else "")
    return (
        f"Of {num_processes} processes, {len(missing)} did not come within {timeout:g} s "
        f"(process_id {names}): start them too, or wait longer with --initialization_timeout."
    )


def _disagreement(report: dict[str, int], present: Iterable[int], num_processes: int) -> str | None:
    """Returns what is wrong with a report, None if nothing is."""
    process_id, theirs = report["process_id"], report["num_processes"]
    if theirs != num_processes:
        return (
            f"Process {process_id} was started with --num_processes={theirs}, and process 0 with "
            f"--num_processes={num_processes}: give all the same."
        )
    if process_id in present:
        return f"Two processes were started with --process_id={process_id}: give each its own."
    return None


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(json.dumps(message).encode() + b"\n")


def _receive(connection: socket.socket, timeout: float) -> dict[str, Any] | None:
    """Returns a message, None if the other side closes, is silent or says something else."""
    connection.settimeout(timeout)
    try:
        with connection.makefile("rb") as file:
            message = json.loads(file.readline(_LINE_BYTES))
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None
