"""The scripts that train on TPU pods, and on the TPUs of GKE."""

import os
import shlex

import pytest
import yaml

from tests.scripts import PYTHON, TRAIN, call, dry_run, program, unknown_to_jobset, wait_for

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
        f"pip install --quiet {python} -r requirements.txt jax[tpu] gcsfs\n"
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


def test_a_workdir_in_a_bucket_needs_no_disk():
    where = ["--type", "v6e", "--topology", "4x4", "--dry-run"]
    train = [TRAIN[0], "--workdir=gs://bucket/run"]
    jobset = yaml.safe_load(call("gke.sh", *GKE, *where, *train))
    expected = yaml.safe_load(call("gke.sh", *GKE, "--claim", "disk", *where, *train))
    pod = expected["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    del pod["volumes"], pod["containers"][0]["volumeMounts"]
    assert jobset == expected


def test_the_jobset_fits_its_schema():
    where = ["--type", "v6e", "--topology", "4x4", "--claim", "disk", "--dry-run"]
    jobset = yaml.safe_load(call("gke.sh", *GKE, *where, *TRAIN))
    assert unknown_to_jobset(jobset) == []
    jobset["spec"]["replicatedJobs"][0]["template"]["spec"]["backoflimit"] = 1
    expected = "jobset.spec.replicatedJobs[0].template.spec.backoflimit"
    assert unknown_to_jobset(jobset) == [expected]
    jobset["spec"]["replicatedJobs"][0]["replicas"] = "two"
    with pytest.raises(ValueError, match="replicas"):
        unknown_to_jobset(jobset)


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
        (("--type", "v6e", "--topology", "4x4", *TRAIN), "--claim is missing"),
        (("--type", "v6e", "--topology", "4x4", "--with", "xpk", "x"), "--cluster or --location"),
        (("--type", "v6e", "--topology", "4x4", "--with", "it", "x"), "or xpk, not 'it'."),
    ],
)
def test_what_is_wrong_about_gke(arguments, message):
    assert message in call("gke.sh", *GKE, *arguments, status=2)
