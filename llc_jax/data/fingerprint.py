"""A fingerprint of the images of a dataset, by which it is noticed that they have changed."""

import dataclasses
import hashlib

import numpy as np

from llc_jax.data.splits import Splits

# Changed classes that are named, at most.
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Fingerprint:
    """What identifies the images of a dataset, wherever they lie.

    Attributes:
      images: the number of images of each class.
      sha256: the digest of the names, labels and file sizes of all images, in order and split,
        in hexadecimal.
    """

    images: dict[str, int]
    sha256: str

    @classmethod
    def of(cls, splits: Splits) -> "Fingerprint":
        """Returns the fingerprint of the training and the evaluation images."""
        class_names, digest = splits.train.class_names, hashlib.sha256()
        counts = np.zeros(len(class_names), np.int64)
        for source in (splits.train, splits.evaluation):
            for part in source.identity():
                digest.update(part)
            counts += np.bincount(source.labels, minlength=len(class_names))
        images = dict(zip(map(str, class_names), counts.tolist(), strict=True))
        return cls(images, digest.hexdigest())

    def changes(self, other: "Fingerprint") -> str:
        """Says in words what differs in other images; "" where they are the same."""
        if other == self:
            return ""
        before, after = self.images, other.images
        changes = [
            *(f"the class {name!r} is new" for name in after if name not in before),
            *(f"the class {name!r} is missing" for name in before if name not in after),
            *(
                f"{name!r} has {after[name]} images, not {before[name]}"
                for name in before
                if after.get(name, before[name]) != before[name]
            ),
        ]
        more = f", and {len(changes) - _NAMED} more" if len(changes) > _NAMED else ""
        return "; ".join(changes[:_NAMED]) + more or "some have other names or sizes"
