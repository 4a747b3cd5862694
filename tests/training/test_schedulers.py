"""What schedulers tell of a job: their variables, as they really set them."""

import pytest

from llc_jax.errors import InputError
from llc_jax.training.schedulers import Job, resolve

SRUN = {
    "SLURM_JOB_ID": "5000",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NUM_TASKS": "9",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2),1",
    "SLURM_STEP_NODELIST": "gpu[007-008,012]",
}
BATCH = {"SLURM_JOB_ID": "5000", "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}
OPEN_MPI_4 = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "4",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_MCA_orte_hnp_uri": "1318125568.0;tcp://192.0.2.2,192.0.2.3:41759;tcp6://[fd00::2]:34921",
    "PMIX_NAMESPACE": "1318125569",
}
GKE = {"TPU_WORKER_ID": "2", "TPU_WORKER_HOSTNAMES": "tpu-0.tpu,tpu-1.tpu,tpu-2.tpu,tpu-3.tpu"}
VARIABLES = {"JAX_COORDINATOR_ADDRESS": "run-0-0.run:5000", "JAX_NUM_PROCESSES": "4"}
TPU_VM = {"agent-worker-number": "1", "worker-network-endpoints": "a:0:10.0.0.7,b:1:10.0.0.8"}


def auto(environ, **metadata):
    """Returns the job of --coordinator=auto, on a machine with those metadata."""
    return resolve("auto", None, None, environ, metadata.get)


def test_slurm():
    assert auto(SRUN) == Job("Slurm", "gpu007:62344", 9, 5, devices=(1,))


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,other2", "node1"),
        ("node[001-015],other2", "node001"),
        ("node[003,007-015]", "node003"),
        ("rack[2-3]node[4,9],other[1-2]", "rack2node4"),
    ],
)
def test_process_0_is_on_the_first_node_of_slurm(nodes, first):
    assert auto(SRUN | {"SLURM_STEP_NODELIST": nodes}).coordinator == f"{first}:62344"


@pytest.mark.parametrize(
    ("environ", "devices"),
    [
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, (1,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7"}, (2, 3)),
        # Slurm has given each task GPUs of its own.
        ({"CUDA_VISIBLE_DEVICES": "3"}, None),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6,7", "SLURM_GPUS_PER_TASK": "4"}, None),
        ({"CUDA_VISIBLE_DEVICES": "4,5,6,7", "SLURM_TRES_PER_TASK": "gres/gpu:4"}, None),
        # One task a node has all that it sees, and JAX would give it one.
        ({"SLURM_NODEID": "2", "SLURM_LOCALID": "0"}, None),
    ],
)
def test_processes_of_a_node_share_its_gpus(environ, devices):
    assert auto(SRUN | environ).devices == devices


def test_open_mpi_4_tells_the_host():
    job = auto(OPEN_MPI_4)
    assert job.coordinator.startswith("192.0.2.2:6")
    assert (job.num_processes, job.process_id, job.devices) == (4, 3, (1,))
    six = auto(OPEN_MPI_4 | {"OMPI_MCA_orte_hnp_uri": "1.0;tcp6://[fd00::2,fd00::3]:3"})
    assert six.coordinator.startswith("[fd00::2]:6")


def test_open_mpi_5_does_not_tell_unless_there_is_one_host():
    environ = OPEN_MPI_4 | {"OMPI_MCA_orte_hnp_uri": ""}
    with pytest.raises(InputError, match="Open MPI does not tell where process 0 is: give"):
        auto(environ)
    job = resolve("host7:5000", None, None, environ)
    assert (job.coordinator, job.num_processes, job.process_id) == ("host7:5000", 4, 3)
    local = auto(environ | {"OMPI_COMM_WORLD_LOCAL_SIZE": "4"})
    assert local.coordinator.startswith("localhost:6")


def test_mpirun_within_slurm_is_open_mpi():
    assert auto(SRUN | OPEN_MPI_4).scheduler == "Open MPI"


def test_gke_with_one_slice_and_with_two():
    assert auto(GKE) == Job("GKE", "tpu-0.tpu:8482", 4, 2, platform="tpu")
    megascale = {
        "MEGASCALE_COORDINATOR_ADDRESS": "tpu-slice-0-0.tpu:8080",
        "MEGASCALE_NUM_SLICES": "2",
        "MEGASCALE_SLICE_ID": "1",
    }
    assert auto(GKE | megascale) == Job("GKE", "tpu-slice-0-0.tpu:8482", 8, 6, platform="tpu")


def test_a_tpu_vm_with_one_slice_and_with_two():
    assert auto({}, **TPU_VM) == Job("the TPU pod", "10.0.0.7:8482", 2, 1, platform="tpu")
    hosts = TPU_VM | {"worker-network-endpoints": "t1v-a-w-0,t1v-a-w-1"}
    assert auto({}, **hosts).coordinator == "t1v-a-w-0:8482"
    megascale = "ZONE: 'x'\nMEGASCALE_COORDINATOR_ADDRESS: '10.0.1.2'\nMEGASCALE_NUM_SLICES: '2'\n"
    two = {"tpu-env": f"{megascale}MEGASCALE_SLICE_ID: '1'\n"}
    assert auto({}, **TPU_VM, **two) == Job("the TPU pod", "10.0.1.2:8482", 4, 3, platform="tpu")


def test_variables_of_jax():
    environ = VARIABLES | {"JAX_PROCESS_ID": "1"}
    expected = Job("JAX_COORDINATOR_ADDRESS", "run-0-0.run:5000", 4, 1)
    assert auto(environ) == expected
    assert auto(VARIABLES | {"JOB_COMPLETION_INDEX": "1"}) == expected
    assert auto(GKE | environ) == expected


def test_the_port_can_be_chosen():
    for environ in (SRUN, OPEN_MPI_4, GKE):
        chosen = auto(environ | {"JAX_COORDINATOR_PORT": "7000"}).coordinator
        assert chosen.endswith(":7000")


@pytest.mark.parametrize(
    "environ", [SRUN, OPEN_MPI_4, GKE, VARIABLES | {"JOB_COMPLETION_INDEX": "1"}]
)
def test_one_of_several_that_was_not_told_so_is_refused(environ):
    with pytest.raises(InputError, match=r"number \d of \d .*--coordinator=auto .*=none alone"):
        resolve(None, None, None, environ)
    assert resolve("none", None, None, environ) is None


def test_a_batch_script_of_several_nodes_does_not_train_alone():
    for coordinator in (None, "auto"):
        with pytest.raises(InputError, match="Slurm has given this job 2 nodes, .* by srun with"):
            resolve(coordinator, None, None, BATCH | {"SLURM_JOB_NUM_NODES": "2"})
    assert resolve(None, None, None, BATCH | {"SLURM_JOB_NUM_NODES": "1"}) is None


def test_the_command_line_comes_first():
    job = resolve("host7:5000", 2, 1, SRUN)
    assert (job.coordinator, job.num_processes, job.process_id) == ("host7:5000", 2, 1)
    assert resolve("host7:5000", 2, 1, {}) == Job("the command line", "host7:5000", 2, 1)
    assert auto(VARIABLES | {"JAX_PROCESS_ID": "1"}).num_processes == 4
    with pytest.raises(InputError, match="needs --num_processes and --process_id: no scheduler"):
        resolve("host7:5000", None, None, {})


def test_a_process_on_its_own_is_alone():
    assert resolve(None, None, None, {}) is None
    assert resolve(None, None, None, SRUN | {"SLURM_STEP_NUM_TASKS": "1"}) is None
    with pytest.raises(InputError, match="nothing here tells of other processes"):
        auto({})
