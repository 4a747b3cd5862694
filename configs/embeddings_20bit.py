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
    config.batch_size = 256
    config.min_steps = 300
    config.model = ConfigDict({"name": "identity", "standardize": True})
    prefixed = not source or source.startswith("embeddings:")
    config.data.source = source if prefixed else f"embeddings:{source}"
    adamw = common.adamw(2e-3, warmup_epochs=1.0, codebook_rate=10.0)
    config.stages.linear = common.linear(10, adamw)
    config.stages.codebook = common.codebook(
        10, adamw, logit_scale=common.bits(config) ** -0.5, init_from="linear"
    )
    config.stages.instance = common.instance(20, adamw)
    common.hidden_layers(config, 512, 512, 512, dropout=0.3)
    return config.lock()
