"""The program as its users start it: in processes of its own."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
MAIN = ("-m", "llc_jax.main")
PIPES = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}


def start(
    workdir,
    *arguments,
    config="tests/tiny.py",
    devices=1,
    program=MAIN,
    optimized=True,
    cwd=ROOT,
):
    """Starts the program on so many CPU devices; `program` is how Python is told of it.

    Where it is not to be optimized, it is compiled as the tests themselves are.
    """
    command = [sys.executable, *program]
    options = "" if optimized else os.environ["XLA_FLAGS"]
    environment = os.environ | {
        "XLA_FLAGS": f"{options} --xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": f"{ROOT / 'configs'}:{ROOT}",
        "PYTHONWARNINGS": ",".join(
            [
                "error",
                "ignore:the load_module:DeprecationWarning",
                "ignore:Error reading persistent compilation cache entry:UserWarning",
            ]
        ),
    }
    flags = [f"--config={config}", f"--workdir={workdir}", *arguments]
    return subprocess.Popen([*command, *flags], cwd=cwd, env=environment, **PIPES)


def start_several(count, workdir, *arguments, **options):
    """Starts the program in so many processes of one run; one is not told of others."""
    if count == 1:
        return [start(workdir, *arguments, **options)]
    cluster = [f"--coordinator={free_address()}", f"--num_processes={count}"]
    return [
        start(workdir, *cluster, f"--process_id={index}", *arguments, **options)
        for index in range(count)
    ]


def free_address():
    """Returns an address of this machine at which nothing listens."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return f"localhost:{free.getsockname()[1]}"


def wait_until_signals_are_caught(process):
    """Waits until a process has a handler for SIGTERM."""
    status = pathlib.Path(f"/proc/{process.pid}/status")
    if not status.exists():  # Not Linux.
        time.sleep(2.0)
        return
    mask = 1 << (signal.SIGTERM - 1)
    while process.poll() is None:
        (caught,) = [line for line in status.read_text().splitlines() if "SigCgt" in line]
        if int(caught.split()[1], 16) & mask:
            return
        time.sleep(0.01)


def finish(process, status=0, timeout=120):
    """Waits for the end; returns what the program printed."""
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode == status, err
    return out, err
