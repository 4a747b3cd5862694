"""Disks of a few megabytes that tests may fill."""

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest


@contextlib.contextmanager
def small_disk(megabytes=8):
    """Mounts an empty file system of that size and yields where, or skips the test.

    It is not mounted among pytest's temporary files: those of a killed test are removed by a
    later one, which a mounted file system does not let happen.
    """
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("a file system can be mounted only by root, and on Linux")
    directory = Path(tempfile.mkdtemp(prefix="small-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(directory)]
    mounting = subprocess.run(mount, capture_output=True, text=True)
    if mounting.returncode != 0:
        directory.rmdir()
        pytest.skip(f"no file system can be mounted here: {mounting.stderr.strip()}")
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", str(directory)], check=True)
        directory.rmdir()


def fill(disk):
    """Leaves no room on a disk; returns the file that takes it."""
    path = disk / "filler"
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        for size in (65536, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return path


def fill_before(monkeypatch, disk, place, name, call):
    """Fills the disk as a function is called that many times."""
    function, calls = getattr(place, name), []

    def filling(*arguments, **options):
        calls.append(name)
        if len(calls) == call:
            fill(disk)
        return function(*arguments, **options)

    monkeypatch.setattr(place, name, filling)
