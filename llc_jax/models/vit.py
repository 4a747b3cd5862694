"""Vision transformers as in timm; the features are the class token's output.

References:
  Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021; the sizes are those of
  Touvron et al., Training data-efficient image transformers, ICML 2021.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

from llc_jax.models import cpu

_HEAD_WIDTH = 64
_EPSILON = 1e-6


class Block(nnx.Module):
    """A pre-norm transformer block: self-attention, then an MLP, each with a residual."""

    def __init__(self, width: int, *, dtype, rngs: nnx.Rngs):
        norm = functools.partial(nnx.LayerNorm, width, epsilon=_EPSILON, dtype=dtype, rngs=rngs)
        dense = functools.partial(_dense, dtype=dtype, rngs=rngs)
        self.attention_norm, self.dense_norm = norm(), norm()
        self.qkv, self.projection = dense(width, 3 * width), dense(width, width)
        self.widen, self.narrow = dense(width, 4 * width), dense(4 * width, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps tokens, float[B, T, d], to tokens of the same shape."""
        x = x + self.projection(self._attend(self.qkv(self.attention_norm(x))))
        return x + self.narrow(nnx.gelu(self.widen(self.dense_norm(x)), approximate=False))

    def _attend(self, qkv: jax.Array) -> jax.Array:
        batch, tokens, width = qkv.shape
        split = qkv.reshape(batch, tokens, 3, width // 3 // _HEAD_WIDTH, _HEAD_WIDTH)
        query, key, value = (split[:, :, i] for i in range(3))
        attention = cpu.attention if cpu.is_default() else jax.nn.dot_product_attention
        return attention(query, key, value).reshape(batch, tokens, -1)


class VisionTransformer(nnx.Module):
    """A vision transformer with a class token and learnt position embeddings.

    Args:
      depth: number of blocks.
      width: of a token; a multiple of 64, the width of an attention head.
      patch: side of the square patch of a token, in pixels.
      image_size: side of the images, in pixels; the position embeddings are for this size.
      dtype: of the arithmetic; parameters and features are float32.
    """

    def __init__(
        self,
        *,
        depth: int,
        width: int,
        patch: int = 16,
        image_size: int = 224,
        dtype=jnp.float32,
        rngs: nnx.Rngs,
    ):
        tokens = (image_size // patch) ** 2
        self.image_size, self.dtype = image_size, dtype
        self.patch = nnx.Conv(
            3, width, (patch, patch), patch, padding="VALID", dtype=dtype, rngs=rngs
        )
        init = nnx.initializers.truncated_normal(0.02)
        self.class_token = nnx.Param(init(rngs.params(), (1, 1, width)))
        self.position = nnx.Param(init(rngs.params(), (1, 1 + tokens, width)))
        self.blocks = nnx.List(Block(width, dtype=dtype, rngs=rngs) for _ in range(depth))
        self.final_norm = nnx.LayerNorm(width, epsilon=_EPSILON, dtype=dtype, rngs=rngs)
        self.num_features = width

    def __call__(self, images: jax.Array) -> jax.Array:
        """Maps normalised images, float[B, H, W, 3], to features, float32[B, d]."""
        if images.shape[1:3] != (self.image_size,) * 2:
            raise ValueError(
                f"The positions are of images of {self.image_size} pixels, "
                f"not {images.shape[1:3]}: give the model's image_size."
            )
        patches = self.patch(images)
        batch, width = len(images), patches.shape[-1]
        class_token = jnp.broadcast_to(self.class_token[...], (batch, 1, width))
        class_token = class_token.astype(self.dtype)
        x = jnp.concatenate([class_token, patches.reshape(batch, -1, width)], axis=1)
        x = x + jnp.broadcast_to(self.position[...], x.shape).astype(self.dtype)
        for block in self.blocks:
            x = block(x)
        return self.final_norm(x[:, 0]).astype(jnp.float32)


def _dense(inputs: int, outputs: int, *, dtype, rngs: nnx.Rngs) -> nnx.Linear:
    init = nnx.initializers.truncated_normal(0.02)
    return nnx.Linear(inputs, outputs, kernel_init=init, dtype=dtype, rngs=rngs)
