import functools
import json
import re
import struct
import zipfile

import jax
import numpy as np
import pytest

from llc_jax.errors import InputError
from llc_jax.models import registry
from llc_jax.weights import pretrained

MODEL = {"name": "resnet8_small", "width": 4}
BACKBONE = "resnet8_small"
HEADS = ("linear", "codebook", "code")


def network(head):
    return registry.build(MODEL, {"name": head}, num_classes=3, num_bits=5)


@functools.cache
def weights(head, seed=0):
    rng = np.random.default_rng(seed)
    params, stats = jax.eval_shape(network(head).init, jax.random.key(0))
    return jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32),
        {"params": params, "batch_stats": stats},
    )


@pytest.fixture(scope="module")
def state():
    """An official checkpoint's state dict: projection and codebook."""
    return pretrained.to_torch(weights("codebook"), BACKBONE)


def read(state, head="codebook", drop_head=False):
    return pretrained.from_torch(
        state, weights(head), BACKBONE, drop_head=drop_head, source="w.pth"
    )


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_has_the_official_names_and_shapes(state):
    assert state["fc_lr.weight"].shape == (5, 16, 1, 1)
    assert state["fc.weight"].shape == (3, 5, 1, 1)
    assert state["conv1.weight"].shape == (4, 3, 3, 3)
    assert state["layer3.0.downsample.1.running_var"].shape == (16,)


@pytest.mark.parametrize("head", HEADS)
def test_round_trip(head):
    expected = weights(head, seed=1)
    assert_equal(read(pretrained.to_torch(expected, BACKBONE), head), expected)


def test_phase_2_ignores_the_codebook_of_the_file(state):
    projection = weights("codebook")["params"]["head"]["projection"]
    assert_equal(read(state, "code")["params"]["head"], {"projection": projection})
    latent = pretrained.latent_codebook(state, BACKBONE)
    np.testing.assert_array_equal(latent, weights("codebook")["params"]["head"]["latent"])


def test_drop_head_reads_the_backbone_alone(state):
    params = read(state, "linear", drop_head=True)["params"]
    assert params.keys() == {"backbone", "head"}
    assert params["head"] == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("bn1.weight"), "bn1.weight is missing"),
        (lambda s: s.update(extra=np.zeros(1)), "extra is not needed"),
        (
            lambda s: s.update({"conv1.weight": np.zeros((4, 3, 7, 7))}),
            "conv1.weight is [4, 3, 7, 7], not [4, 3, 3, 3]",
        ),
        (
            lambda s: s.update({"fc_lr.weight": np.zeros((6, 16, 1, 1))}),
            "fc_lr.weight is [6, 16, 1, 1], not [5, 16, 1, 1]. Set drop_head to take",
        ),
        (
            lambda s: s.update({"fc.bias": np.zeros(3), "layer1.0.bn1.bias": np.zeros(2)}),
            "fc.bias is not needed; layer1.0.bn1.bias is [2], not [4]",
        ),
    ],
)
def test_error_names_every_mismatch(state, change, message):
    changed = dict(state)
    change(changed)
    with pytest.raises(InputError, match=re.escape(f"w.pth do not fit: {message}")):
        read(changed)


def test_a_backbone_without_a_pytorch_form():
    net = registry.build({"name": "cnn"}, {"name": "code"}, num_classes=3, num_bits=5)
    params, stats = jax.eval_shape(net.init, jax.random.key(0))
    with pytest.raises(InputError, match="has no PyTorch form"):
        pretrained.to_torch({"params": params, "batch_stats": stats}, "cnn")


def test_safetensors(tmp_path, state):
    pretrained.write_state_dict(tmp_path / "w.safetensors", state)
    assert_equal(pretrained.read_state_dict(tmp_path / "w.safetensors"), state)


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16", np.float64])
def test_reads_other_floats(tmp_path, dtype):
    import ml_dtypes
    from safetensors.numpy import save_file

    dtype = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
    save_file({"a": np.array([0.5, -3], dtype)}, tmp_path / "w.safetensors")
    values = pretrained.read_state_dict(tmp_path / "w.safetensors")["a"]
    assert values.dtype == np.float32
    np.testing.assert_array_equal(values, [0.5, -3])


def test_a_damaged_safetensors_file(tmp_path, state):
    path = tmp_path / "w.safetensors"
    pretrained.write_state_dict(path, state)
    complete = path.read_bytes()
    for content in (b"", complete[:100], complete[:-1], b"x" * 100):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is not a whole .safetensors file"):
            pretrained.read_state_dict(path)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2", "complex64"])
def test_safetensors_of_other_numbers(tmp_path, dtype):
    name = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "complex64": "C64"}[dtype]
    size = 8 if name == "C64" else 1
    header = json.dumps({"a.weight": {"dtype": name, "shape": [3], "data_offsets": [0, 3 * size]}})
    content = struct.pack("<Q", len(header)) + header.encode() + bytes(3 * size)
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(InputError, match=f"has a.weight as {name}: weights are dense tensors of"):
        pretrained.read_state_dict(tmp_path / "w.safetensors")


class TestTorch:
    @pytest.fixture(autouse=True)
    def torch(self):
        return pytest.importorskip("torch", reason="pip install torch")

    @pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
    def test_reads_checkpoints_of_training_scripts(self, tmp_path, torch, state, wrap):
        tensors = {f"module.{key}": torch.tensor(value) for key, value in state.items()}
        tensors["module.bn1.num_batches_tracked"] = torch.tensor(3)
        checkpoint = tensors if wrap is None else {"epoch": 3, "arch": "resnet", wrap: tensors}
        torch.save(checkpoint, tmp_path / "w.pth")
        assert_equal(pretrained.read_state_dict(tmp_path / "w.pth"), state)

    def test_torch_reads_the_written_file(self, tmp_path, torch, state):
        pretrained.write_state_dict(tmp_path / "w.pth", state)
        tensors = torch.load(tmp_path / "w.pth", weights_only=True)
        assert_equal({key: value.numpy() for key, value in tensors.items()}, state)

    def test_a_damaged_file(self, tmp_path, torch, state):
        path = tmp_path / "w.pth"
        pretrained.write_state_dict(path, state)
        complete = path.read_bytes()
        for content in (b"", complete[:100], complete[: len(complete) // 2], b"x" * 100):
            path.write_bytes(content)
            with pytest.raises(InputError, match=r"w\.pth (is not a whole|holds more than)"):
                pretrained.read_state_dict(path)

    @pytest.mark.parametrize("member", ["data/0", "data/20", "data.pkl"])
    def test_a_member_whose_checksum_differs(self, tmp_path, torch, state, member):
        path = tmp_path / "w.pth"
        pretrained.write_state_dict(path, state)
        damaged = bytearray(path.read_bytes())
        with zipfile.ZipFile(path) as archive, archive.open(f"w/{member}") as file:
            start = file._orig_compress_start
            damaged[start + len(archive.read(f"w/{member}")) // 2] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=f"the checksum of w/{member} differs"):
            pretrained.read_state_dict(path)

    def test_files_without_checksums(self, tmp_path, torch, state):
        tensors = {key: torch.tensor(value) for key, value in state.items()}
        torch.serialization.set_crc32_options(False)
        try:
            torch.save(tensors, tmp_path / "zeros.pth")
        finally:
            torch.serialization.set_crc32_options(True)
        torch.save(tensors, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
        for name in ("zeros.pth", "old.pth"):
            assert_equal(pretrained.read_state_dict(tmp_path / name), state)

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    @pytest.mark.parametrize(
        ("kind", "name"),
        [
            ("sparse", "sparse_coo float32"),
            ("compressed", "sparse_csr float32"),
            ("meta", "meta float32"),
            ("quantized", "qint8"),
            ("complex", "complex64"),
            ("eight bits", "float8_e4m3fn"),
        ],
    )
    def test_tensors_that_are_no_weights(self, tmp_path, torch, kind, name):
        tensor = {
            "sparse": lambda: torch.eye(3).to_sparse(),
            "compressed": lambda: torch.eye(3).to_sparse_csr(),
            "meta": lambda: torch.zeros(3, device="meta"),
            "quantized": lambda: torch.quantize_per_tensor(torch.zeros(3), 0.1, 0, torch.qint8),
            "complex": lambda: torch.zeros(3, dtype=torch.complex64),
            "eight bits": lambda: torch.zeros(3).to(torch.float8_e4m3fn),
        }[kind]()
        torch.save({"b": torch.zeros(1), "a.weight": tensor}, tmp_path / "w.pth")
        with pytest.raises(InputError, match=f"has a.weight as {name}: weights are dense tensors"):
            pretrained.read_state_dict(tmp_path / "w.pth")

    def test_runs_no_code(self, tmp_path, torch):
        evidence = tmp_path / "evidence"
        torch.save({"state_dict": {"a": torch.zeros(1)}, "x": Touch(evidence)}, tmp_path / "w.pth")
        with pytest.raises(InputError, match="could run code"):
            pretrained.read_state_dict(tmp_path / "w.pth")
        assert not evidence.exists()

    @pytest.mark.parametrize("content", [[1, 2], {"a": 3}, {}])
    def test_no_state_dict(self, tmp_path, torch, content):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(InputError, match="holds no state dict"):
            pretrained.read_state_dict(tmp_path / "w.pth")


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return type(self.path).touch, (self.path,)
