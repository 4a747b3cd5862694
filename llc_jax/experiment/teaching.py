"""Targets of bits by a teacher: a linear classifier that is trained already.

The label alone says that every bit of its class is right for the image. A classifier also says
which other classes the image resembles. Its target for bit j is the mean of the classes' bits,

  t_j = sum over classes c of p(c | x) [B(C)_cj > 0],

where p are the class probabilities that the classifier gives the training image as it is, without
augmentation. They are computed once, before the first step: k numbers an image. The objective
`instance` mixes them with the bits of the label.

References:
  Hinton et al., Distilling the knowledge in a neural network, 2015.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.compiling import jit_network
from llc_jax.data.pipeline import WithTargets
from llc_jax.evaluation.gathering import embed_images, gather
from llc_jax.experiment.stage import Stage


def with_targets(stage: Stage, codebook: Codebook) -> WithTargets:
    """Returns the training images of a stage with the targets of their bits.

    Args:
      stage: that has a teacher, which is trained.
      codebook: of the stage.
    """
    teacher = stage.teacher
    weights, class_codes = teacher.trained_weights(), codebook.packed
    shardings = (teacher.replicated, teacher.batched)

    @functools.partial(jit_network, in_shardings=shardings)
    def targets_of(weights, inputs):
        logits = teacher.network.evaluate(*weights, inputs).class_logits
        bits = packing.unpack(class_codes, codebook.num_bits) > 0
        probabilities = jax.nn.softmax(logits)
        return jnp.matmul(probabilities, bits.astype(jnp.float32), precision="highest")

    trees = (weights["params"], weights["batch_stats"])
    batches = teacher.eval_batches(teacher.dataset.plain)
    embedded = embed_images(functools.partial(targets_of, trees), batches)
    images = stage.training.images
    targets = np.zeros((len(images.labels), codebook.num_bits), np.float16)
    # Images that are damaged have none, and are not trained on.
    found = np.flatnonzero(embedded.mask)
    targets[found] = gather(embedded.embeddings.astype(np.float16), embedded.positions)
    return WithTargets(images, targets)
