"""20-bit codes of labelled embeddings: of CLIP, of a text encoder, of your own network.

  python -m llc_jax.main --config=configs/embeddings_20bit.py:features.npz --workdir=runs/features

The argument is an .npz of `embeddings` and `labels`, or another form that
`llc_jax.data.embeddings` lists. If the data has no split, a tenth of each class is kept for
evaluation. `llc_jax.LLC` trains with the same values.
"""

import common
from ml_collections import ConfigDict


def get_config(source: str = "") -> ConfigDict:
    """Returns the config."""
    config = common.base()
    config.model = ConfigDict({"name": "identity", "standardize": True})
    prefixed = not source or source.startswith("embeddings:")
    config.data.source = source if prefixed else f"embeddings:{source}"
    common.on_features(config)
    return config.lock()
