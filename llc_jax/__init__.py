"""Learnt low-dimensional binary codes (LLC) for images and classes.

The public API; see the docstrings of what is named here.
"""

import importlib

__version__ = "0.1.0"

_API = {
    "Codebook": "llc_jax.codes.codebook",
    "HammingIndex": "llc_jax.search.index",
    "InputError": "llc_jax.errors",
    "LLC": "llc_jax.estimator",
    "LinearEncoder": "llc_jax.codes.encoders",
    "Model": "llc_jax.inference",
    "decoders": "llc_jax.decoding.decoders",
    "from_bytes": "llc_jax.codes.packing",
    "load": "llc_jax.inference",
    "metrics": "llc_jax.evaluation.metrics",
    "pack": "llc_jax.codes.packing",
    "sign_ste": "llc_jax.codes.binarize",
    "structure": "llc_jax.evaluation.structure",
    "to_bytes": "llc_jax.codes.packing",
    "unpack": "llc_jax.codes.packing",
}

__all__ = list(_API)


def __getattr__(name: str):
    """Imports a public name at its first use: worker processes need only a part of it all."""
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = importlib.import_module(_API[name])
    return module if module.__name__.endswith(f".{name}") else getattr(module, name)
