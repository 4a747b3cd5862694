"""From a checkpoint of PyTorch to a run that `llc_jax.load` opens, and back."""

import os

from llc_jax.codes.codebook import Codebook
from llc_jax.copies import as_path
from llc_jax.errors import InputError
from llc_jax.experiment.config import (
    CheckpointConfig,
    DataConfig,
    OptimizerConfig,
    RunConfig,
    StageConfig,
)
from llc_jax.experiment.finished_run import check_new, write_run
from llc_jax.experiment.network import abstract_weights, build_network
from llc_jax.experiment.workdir import (
    CODEBOOK_FILE,
    find_stage,
)
from llc_jax.files import atomic_write
from llc_jax.mesh import make_mesh, replicated_sharding, with_sharding
from llc_jax.models import registry
from llc_jax.training.checkpoint import restore_weights, weight_shapes
from llc_jax.weights import pretrained, torch_names

_STAGE = "instance"


def convert(
    weights: str | os.PathLike,
    workdir: str | os.PathLike,
    *,
    codebook: str | os.PathLike | None = None,
    arch: str | None = None,
) -> None:
    """Makes the workdir of a finished run from an official LLC checkpoint.

    Args:
      weights: a file that `pretrained.read_state_dict` reads, with a backbone of the
        registry and the projection `fc_lr.weight`, [k, d, 1, 1].
      workdir: to make; must not exist, or be empty.
      codebook: an `.npz` or `.npy` of latent values, [L, k]; by default the `fc.weight`
        of the checkpoint.
      arch: a backbone of the registry; by default the one that fits.

    Raises:
      InputError: if the checkpoint cannot be used; then nothing is written.
    """
    workdir = as_path(workdir).absolute()
    check_new(workdir)
    state = pretrained.read_state_dict(weights)
    if pretrained.PROJECTION not in state:
        raise InputError(
            f"{weights} has no code projection ({pretrained.PROJECTION}), so it gives no codes: "
            f"train them with --config.init_from={weights} --config.drop_head=True."
        )
    name = arch or _fitting_backbone(state, weights)
    codes = _read_codebook(codebook, state, name, weights)
    config = _config(name, codes.num_bits, weights)
    network = build_network(config, config.stages[_STAGE], codes.num_classes)
    abstract = abstract_weights(network)
    tree = pretrained.from_torch(state, abstract, name, drop_head=False, source=str(weights))
    write_run(workdir, config, tree, codes)


def export(workdir: str | os.PathLike, path: str | os.PathLike) -> None:
    """Writes the weights of a run's last stage, and its codebook, as a PyTorch state dict.

    Args:
      workdir: of a finished run, or a stage's folder in it.
      path: a `.safetensors` file, or one for `torch.load`; its keys are those of torchvision,
        timm or the official LLC code.

    Raises:
      InputError: if there is no such run, or its backbone has no PyTorch form.
    """
    path = as_path(path)
    if path.suffix not in pretrained.SUFFIXES:
        raise InputError(f"Weights are a file of {', '.join(pretrained.SUFFIXES)}, not {path}.")
    stage = find_stage(workdir)
    codebook, checkpoints = stage.directory.load_codebook(), stage.directory.checkpoints
    shapes = with_sharding(weight_shapes(checkpoints), replicated_sharding(make_mesh()))
    weights = restore_weights(checkpoints, shapes)
    latent = None if codebook is None else codebook.latent
    state = pretrained.to_torch(weights, stage.run.model["name"], latent)
    with atomic_write(path) as temporary:
        pretrained.write_state_dict(temporary, state)


def _fitting_backbone(state: pretrained.StateDict, weights: str | os.PathLike) -> str:
    """Returns the backbone whose weights a state dict holds."""
    for name in torch_names.BACKBONES:
        network = registry.build({"name": name}, {"name": "code"}, num_classes=1, num_bits=1)
        if pretrained.fits_backbone(state, abstract_weights(network), name):
            return name
    raise InputError(
        f"The weights {weights} fit no backbone whole: name one, with --arch, to see what differs."
    )


def _read_codebook(
    path: str | os.PathLike | None,
    state: pretrained.StateDict,
    backbone: str,
    weights: str | os.PathLike,
) -> Codebook:
    """Returns the codebook of a file or of the checkpoint, of the projection's bits."""
    if path is not None:
        codebook = Codebook.load(path)
    else:
        latent = pretrained.latent_codebook(state, backbone)
        if latent is None:
            raise InputError(f"There is no codebook in {weights}: give its file as --codebook.")
        codebook = Codebook.from_numpy(latent, source=str(weights))
    bits = len(state[pretrained.PROJECTION])
    if codebook.num_bits != bits:
        raise InputError(
            f"The codebook {path or weights} has {codebook.num_bits} bits, the projection of "
            f"{weights} has {bits}."
        )
    return codebook


def _config(name: str, num_bits: int, weights: str | os.PathLike) -> RunConfig:
    """Returns the config of a run of phase 2 alone, as if it had been trained here."""
    data = DataConfig(
        source="",
        eval_source="",
        holdout=0.0,
        image_size=None,
        crop_fraction=0.875,
        exif_orientation=False,
        in_memory=False,
        augment={},
        workers=None,
        on_error="stop",
    )
    optimizer = OptimizerConfig(
        learning_rate=0.0,
        schedule="constant",
        warmup_epochs=0.0,
        momentum=0.0,
        nesterov=False,
        weight_decay=0.0,
        codebook_rate=1.0,
    )
    stage = StageConfig(
        objective={"name": "instance"},
        head={"name": "code"},
        epochs=1,
        init_from=str(weights),
        codebook=CODEBOOK_FILE,
        trainable_blocks=None,
        optimizer=optimizer,
    )
    return RunConfig(
        seed=0,
        num_bits=num_bits,
        prefixes=(),
        init_from=str(weights),
        drop_head=False,
        codebook=CODEBOOK_FILE,
        batch_size=256,
        data=data,
        model={"name": name, "dtype": "float32"},
        stages={_STAGE: stage},
        checkpoint=CheckpointConfig(keep=1, steps=0),
        eval_epochs=0,
        decoders=(),
    )
