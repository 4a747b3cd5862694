"""Which processes a cluster has started together, as its scheduler tells each of them.

Found here, and not by JAX: the processes can then meet, and watch each other, before JAX connects
them; and it is known whether a process was started alone where it should be one of several.
"""

import dataclasses
import os
import pathlib
import re
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping

from llc_jax.errors import InputError

# Ports that programs may choose for themselves; those that a job's number chooses are among them.
_FIRST_PORT, _NUM_PORTS = 61440, 4096
_TPU_PORT = 8482
_METADATA = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/"
# The special files of TPU chips: up to v4, and from v5e on.
_TPU_CHIPS = ("accel[0-9]*", "vfio/[0-9]*")


@dataclasses.dataclass(frozen=True)
class Job:
    """This process as one of those that a scheduler has started together.

    Attributes:
      scheduler: its name.
      coordinator: host:port of process 0; None where the scheduler does not tell.
      num_processes: how many there are.
      process_id: which of them this one is.
      devices: the GPUs of this host that are this process's own, by their place among those that
        it sees; None for all.
      platform: the kind of devices that the scheduler has given, None where it does not tell.
    """

    scheduler: str
    coordinator: str | None
    num_processes: int
    process_id: int
    devices: tuple[int, ...] | None = None
    platform: str | None = None


def resolve(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    environ: Mapping[str, str] = os.environ,
    tpu_metadata: Callable[[str], str | None] | None = None,
) -> Job | None:
    """Returns the job that a process is told to take part in, None where it is alone.

    Args:
      coordinator: host:port of process 0; "auto" for what the scheduler tells; "none" for a
        process of its own; None for a process that is alone, or an error where it should not be.
      num_processes: how many there are, None for what the scheduler tells.
      process_id: which of them this one is, None for what the scheduler tells.
      environ: the environment of the process.
      tpu_metadata: name -> what the machine's metadata have; by default those of a Cloud TPU VM.

    Raises:
      InputError: if something is missing, or the process is one of several and was not told so.
    """
    flags = {"--num_processes": num_processes, "--process_id": process_id}
    if coordinator in (None, "none"):
        if named := [name for name, value in flags.items() if value is not None]:
            raise InputError(
                f"{named[0]} needs --coordinator: the HOST:PORT of process 0, or auto."
            )
        if coordinator == "none":
            return None
    if coordinator in (None, "auto"):
        _refuse_batch_script(environ)
    job = _find_job(environ, tpu_metadata)
    if coordinator is None:
        if job and job.num_processes > 1:
            raise InputError(
                f"This process is number {job.process_id} of {job.num_processes} that "
                f"{job.scheduler} has started: --coordinator=auto trains with all of them, "
                "--coordinator=none alone."
            )
        return None
    if job is None and coordinator == "auto":
        raise InputError(
            "--coordinator=auto: nothing here tells of other processes, neither a TPU pod, Slurm, "
            "Open MPI nor JAX_COORDINATOR_ADDRESS: give --coordinator=HOST:PORT, --num_processes "
            "and --process_id, or leave --coordinator out on a single machine."
        )
    given = {name[2:]: value for name, value in flags.items() if value is not None}
    if coordinator != "auto":
        if missing := [name for name, value in flags.items() if value is None and job is None]:
            raise InputError(
                f"--coordinator={coordinator} needs {' and '.join(missing)}: no scheduler tells "
                "them here."
            )
        given["coordinator"] = coordinator
    job = dataclasses.replace(job or Job("the command line", None, 1, 0), **given)
    if job.coordinator is None:
        raise InputError(
            f"{job.scheduler} does not tell where process 0 is: give --coordinator=HOST:PORT, "
            "with its host and a free port."
        )
    return job


def _find_job(
    environ: Mapping[str, str], tpu_metadata: Callable[[str], str | None] | None
) -> Job | None:
    """Returns the job of this process, None where no scheduler has started it with others."""
    for find in (_from_variables, _from_gke_tpu, _from_open_mpi, _from_slurm):
        if job := find(environ):
            return job
    if tpu_metadata is None:
        if "TPU_SKIP_MDS_QUERY" in environ or not _has_tpu():
            return None
        tpu_metadata = _metadata
    return _from_tpu_vm(environ, tpu_metadata)


def _from_variables(environ: Mapping[str, str]) -> Job | None:
    """What Kubeflow's trainer and the SkyPilot task of launch/ tell."""
    address, count = (
        environ.get(f"JAX_{name}") for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES")
    )
    process = environ.get("JAX_PROCESS_ID", environ.get("JOB_COMPLETION_INDEX"))
    if not (address and count and process):
        return None
    return Job("JAX_COORDINATOR_ADDRESS", address, int(count), int(process))


def _from_gke_tpu(environ: Mapping[str, str]) -> Job | None:
    hosts = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES")
    if not (hosts and "TPU_WORKER_ID" in environ):
        return None
    return _of_slices("GKE", hosts.split(","), int(environ["TPU_WORKER_ID"]), environ)


def _from_tpu_vm(environ: Mapping[str, str], metadata: Callable[[str], str | None]) -> Job | None:
    worker, endpoints = metadata("agent-worker-number"), metadata("worker-network-endpoints")
    if not (worker and endpoints):
        return None
    # Each is a host, or name:id:address.
    hosts = [endpoint.split(":")[-1] for endpoint in endpoints.split(",")]
    pairs = re.findall(r"^\s*(MEGASCALE_\w+):\s*'?([^'\n]*)", metadata("tpu-env") or "", re.M)
    return _of_slices("the TPU pod", hosts, int(worker), {**dict(pairs), **environ})


def _of_slices(scheduler: str, hosts: list[str], worker: int, megascale: Mapping[str, str]) -> Job:
    """The job of a worker of one TPU slice, or of several that Megascale connects."""
    first = (megascale.get("MEGASCALE_COORDINATOR_ADDRESS") or hosts[0]).split(":")[0]
    num_slices = int(megascale.get("MEGASCALE_NUM_SLICES") or 1)
    slice_id = int(megascale.get("MEGASCALE_SLICE_ID") or 0)
    return Job(
        scheduler,
        f"{first}:{megascale.get('JAX_COORDINATOR_PORT', _TPU_PORT)}",
        len(hosts) * num_slices,
        slice_id * len(hosts) + worker,
        platform="tpu",
    )


def _from_open_mpi(environ: Mapping[str, str]) -> Job | None:
    if "OMPI_COMM_WORLD_RANK" not in environ:
        return None
    rank, size, local_rank, local_size = (
        int(environ[f"OMPI_COMM_WORLD_{name}"])
        for name in ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")
    )
    # Version 4 tells where mpirun runs, which is taken for the host of process 0, as JAX does.
    uri = environ.get("OMPI_MCA_orte_hnp_uri", "")
    found = re.search(r"tcp://([^,:]+)|tcp6://\[([^],]+)", uri)
    host = (found[1] or f"[{found[2]}]") if found else None
    if size == local_size:
        host = "localhost"
    number = zlib.crc32(environ.get("PMIX_NAMESPACE", uri).encode())
    address = host and f"{host}:{_port(environ, number)}"
    return Job("Open MPI", address, size, rank, _own_devices(environ, local_rank, local_size))


def _from_slurm(environ: Mapping[str, str]) -> Job | None:
    if "SLURM_STEP_NODELIST" not in environ:
        return None
    # The first node of such as node[007-015,020],other3.
    nodes = re.sub(r"\[(\w+)[^]]*\]", r"\1", environ["SLURM_STEP_NODELIST"])
    # How many tasks each node has, such as 4(x2),1.
    tasks = re.findall(r"(\d+)(?:\(x(\d+)\))?", environ["SLURM_STEP_TASKS_PER_NODE"])
    counts = [int(count) for count, times in tasks for _ in range(int(times or 1))]
    return Job(
        "Slurm",
        f"{nodes.split(',')[0]}:{_port(environ, int(environ['SLURM_JOB_ID']))}",
        int(environ["SLURM_STEP_NUM_TASKS"]),
        int(environ["SLURM_PROCID"]),
        _own_devices(environ, int(environ["SLURM_LOCALID"]), counts[int(environ["SLURM_NODEID"])]),
    )


def _refuse_batch_script(environ: Mapping[str, str]) -> None:
    """Refuses a process that Slurm's batch script has started by itself, on the first node."""
    num_nodes = environ.get("SLURM_JOB_NUM_NODES", "1")
    if "SLURM_PROCID" in environ and "SLURM_STEP_NODELIST" not in environ and int(num_nodes) > 1:
        raise InputError(
            f"Slurm has given this job {num_nodes} nodes, and the process was started on one of "
            "them alone: start it by srun with --coordinator=auto, as launch/slurm.sbatch does, or "
            "with --coordinator=none."
        )


def _port(environ: Mapping[str, str], number: int) -> str:
    """A port that all processes of a job choose, and other jobs hardly ever."""
    return environ.get("JAX_COORDINATOR_PORT", str(_FIRST_PORT + number % _NUM_PORTS))


def _own_devices(
    environ: Mapping[str, str], local_id: int, local_count: int
) -> tuple[int, ...] | None:
    """The GPUs of one of several processes of a host, where all of them see the same GPUs."""
    by_task = "SLURM_GPUS_PER_TASK" in environ or "gpu" in environ.get("SLURM_TRES_PER_TASK", "")
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    count = len(visible.split(",")) if visible else local_count
    if local_count == 1 or by_task or count < local_count:
        return None
    share = count // local_count
    return tuple(range(local_id * share, (local_id + 1) * share))


def _has_tpu() -> bool:
    return any(any(pathlib.Path("/dev").glob(pattern)) for pattern in _TPU_CHIPS)


def _metadata(name: str) -> str | None:
    """What a Cloud TPU VM is told of itself, None where nothing is or it is another machine."""
    request = urllib.request.Request(_METADATA + name, headers={"Metadata-Flavor": "Google"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=5) as response:
            return response.read().decode()
    except (urllib.error.URLError, TimeoutError):
        return None
