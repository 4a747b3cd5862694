"""Codes in the plane, for programs that draw them."""

import numpy as np

from llc_jax.codes import packing

# Items that the directions are fitted to, at most, and that are projected at once.
_CHUNK = 2**16


def project(
    codes: np.ndarray, num_bits: int, code_logits: np.ndarray | None = None, seed: int = 0
) -> np.ndarray:
    """Projects codes on their first two principal components.

    Args:
      codes: uint32[N, ceil(k / 32)].
      num_bits: k.
      code_logits: float[N, k]; by default the bits are projected, as +1 and -1, and items of
        the same code are at the same place.
      seed: of the 65,536 items that the components are fitted to, where there are more.

    Returns:
      float32[N, 2]; 0 where there is no such component.
    """
    from sklearn.decomposition import PCA  # Slow to import, and only needed here.

    def rows(selection: slice | np.ndarray) -> np.ndarray:
        if code_logits is not None:
            return np.asarray(code_logits[selection], np.float32)
        return np.asarray(packing.unpack(codes[selection], num_bits), np.float32)

    count = len(codes)
    projected = np.zeros((count, 2), np.float32)
    components = min(2, num_bits, count)
    if count < 2:
        return projected
    sample = np.arange(count)
    if count > _CHUNK:
        sample = np.sort(np.random.default_rng(seed).choice(count, _CHUNK, replace=False))
    pca = PCA(components, svd_solver="covariance_eigh").fit(rows(sample))
    for start in range(0, count, _CHUNK):
        chunk = slice(start, start + _CHUNK)
        projected[chunk, :components] = pca.transform(rows(chunk))
    return projected
