"""Features of a frozen backbone: every image goes through it once, and the head trains on them.

The features lie in `<workdir>/features/`, in files named by a key of what they depend on: the
backbone and its weights, the images, and how these are cropped and augmented. So a stage finds
what an earlier one has computed, a run that continues finds what is there, and a run takes over
the files of a run beside it that has the same key.
"""

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from llc_jax.compiling import jit_network
from llc_jax.data import pipeline
from llc_jax.data.dataset import Dataset
from llc_jax.data.features import FeatureFile, Features
from llc_jax.errors import InputError
from llc_jax.experiment.stage import Frozen, Stage
from llc_jax.files import check_space, writing
from llc_jax.mesh import catch_up, from_first_process
from llc_jax.models.network import Tree
from llc_jax.training.logging import RunLog
from llc_jax.training.preemption import Stopped, StopRequest

FEATURES_DIRECTORY = "features"

# Images of each device that are encoded at once; a CPU is fastest with few.
_CPU_BATCH, _BATCH = 32, 128
# Of the files and their keys; another form is another key.
_FORM, _KEY_DIGITS = 1, 20
_FLOAT16_MAX = float(np.finfo(np.float16).max)


@dataclasses.dataclass(frozen=True)
class _Part:
    """Images whose features are needed, in the words of the console, and in how many views."""

    what: str
    images: pipeline.Images
    views: int = 1

    @property
    def num_rows(self) -> int:
        return self.views * len(self.images.labels)


def on_features(
    stage: Stage, log: RunLog, stop_request: StopRequest, *, teaches: bool = False
) -> Stage:
    """Computes the features that a stage needs, if its backbone is frozen.

    Args:
      stage: any stage.
      log: of the run.
      stop_request: as in `loop.train`.
      teaches: whether it is the teacher of another stage, and sees training images as they are.

    Returns:
      The stage that trains and measures the head on them; the same where nothing is frozen.

    Raises:
      Stopped: after saving, if the process was told to stop.
      InputError: if the disk has no room, or a feature is not finite.
      WriteFailed: if they cannot be written.
    """
    teacher = stage.teacher and on_features(stage.teacher, log, stop_request, teaches=True)
    if stage.frozen is None:
        # The stage itself, where it can be: it keeps what it has compiled.
        return stage if teacher is stage.teacher else dataclasses.replace(stage, teacher=teacher)
    extractor = _Extractor(stage, log, stop_request)
    searches = bool(stage.evaluations.cutoffs)

    def encoded(dataset: Dataset, parts: Mapping[str, _Part]) -> Dataset:
        features = {
            name: extractor.features(part, dataset.class_names) for name, part in parts.items()
        }
        return dataclasses.replace(dataset, **features, augment=lambda key, features: features)

    dataset, views = stage.dataset, stage.frozen.views
    parts = {
        "train": _Part("training", dataset.train if views > 1 else dataset.plain, views),
        "evaluation": _Part("evaluation", dataset.evaluation),
    }
    searched = {"database": _Part("database", dataset.database)}
    unseen = dataset.unseen
    if searches and unseen is not None and len(unseen.evaluation.labels):
        of_unseen = {
            "evaluation": _Part("unseen evaluation", unseen.evaluation),
            "database": _Part("unseen database", unseen.database),
        }
        unseen = encoded(unseen, of_unseen)
    unknown = {name: _Part(f"unknown ({name})", images) for name, images in dataset.unknown.items()}
    if views > 1 and (unknown or teaches):  # These compare training images as they are.
        parts["plain"] = _Part("training", dataset.plain)
    dataset = encoded(dataset, parts | (searched if searches else {}))
    of_unknown = {name: extractor.features(part, ()) for name, part in unknown.items()}
    plain = dataset.train if views == 1 else dataset.plain
    dataset = dataclasses.replace(dataset, unknown=of_unknown, plain=plain, unseen=unseen)
    return dataclasses.replace(
        stage.frozen.on_features(dataset),
        initial_weights=stage.initial_weights,
        initial_codebook=stage.initial_codebook,
        teacher=teacher,
    )


class _Extractor:
    """Encodes images with the backbone that one stage starts from."""

    def __init__(self, stage: Stage, log: RunLog, stop_request: StopRequest):
        self._stage, self._log, self._stop_request = stage, log, stop_request
        self._weights = _weights_of_backbone(stage)
        per_device = _CPU_BATCH if jax.default_backend() == "cpu" else _BATCH
        self._shard = pipeline.ProcessShard.of(stage.batched, per_device * stage.mesh.size)

    def features(self, part: _Part, class_names: tuple[str, ...]) -> Features:
        """Returns the features of some images, computed if they are not there yet."""
        directory, size = self._stage.workdir / FEATURES_DIRECTORY, self._stage.frozen.size
        file = FeatureFile(directory / f"{self._key(part)}.npy", part.num_rows, size)
        rows_done, *remarks = from_first_process(lambda: _look_for(file))
        self._log.say(*remarks)
        if int(rows_done) < part.num_rows:
            self._compute(file, part, int(rows_done))
            from_first_process(lambda: _finish(file, part, self._stage.frozen))
            catch_up(file.path)
        features = Features.open(file.path, part.images.labels, class_names)
        part.images.damaged.update(features.damaged)
        return features

    def _key(self, part: _Part) -> str:
        """Returns what names the features of some images: a digest of all they depend on."""
        frozen = self._stage.frozen
        description = [_FORM, frozen.model, part.views]
        if part.views > 1:
            description += [frozen.augmentation, frozen.seed, self._shard.batch_size]
        digest = hashlib.sha256(json.dumps(description).encode())
        backbone = [tree.get("backbone", {}) for tree in self._weights]
        for path, leaf in jax.tree_util.tree_leaves_with_path(backbone):
            digest.update(f"{jax.tree_util.keystr(path)}{leaf.shape}".encode())
            digest.update(np.ascontiguousarray(jax.device_get(leaf)).data)
        for content in part.images.identity():
            digest.update(content)
        return digest.hexdigest()[:_KEY_DIGITS]

    def _compute(self, file: FeatureFile, part: _Part, rows_done: int) -> None:
        """Encodes the images that are left, and writes each batch as it is there."""
        batch_size = self._shard.batch_size
        steps = range(rows_done // batch_size, -(-part.num_rows // batch_size))
        title = f"features of {len(part.images.labels):,} {part.what} images"
        writes = jax.process_index() == 0
        with (
            self._stop_request.training(),
            contextlib.closing(self._encode(part, steps)) as encoded,
            file.append(steps.start * batch_size) if writes else contextlib.nullcontext() as out,
            self._log.counting(title, steps, batch_size) as progress,
        ):
            for step, features in zip(steps, encoded, strict=True):
                if writes:
                    with writing(file.path):
                        out.write(features[: part.num_rows - step * batch_size].tobytes())
                        out.flush()
                progress(step + 1)
                if self._stop_request.after_step() and step + 1 < steps.stop:
                    raise Stopped(
                        f"Stopped at the {title}, and saved:\n"
                        "the same command continues from there.",
                        self._stop_request.signal,
                    )

    def _encode(self, part: _Part, steps: range) -> Iterator[np.ndarray]:
        """Yields the features of the batch of each step, float16[B, d], one behind the device."""
        stage, seed = self._stage, self._stage.frozen.seed
        order = pipeline.InOrder(len(part.images.labels), seed, part.views)
        augment = stage.dataset.augment if part.views > 1 else lambda key, inputs: inputs
        key = jax.random.key(seed)

        def encode(weights, key, batch):
            inputs = augment(key, batch["input"])
            features = stage.network.features(*weights, inputs)
            mask = batch["mask"][:, None]
            finite = jnp.all(jnp.isfinite(features) | ~mask)
            rounded = jnp.clip(features, -_FLOAT16_MAX, _FLOAT16_MAX).astype(jnp.float16)
            return jnp.where(mask, rounded, jnp.nan), finite

        shardings = (stage.replicated, stage.replicated, stage.batched)
        encode = jit_network(encode, in_shardings=shardings, out_shardings=stage.replicated)
        host_batches = part.images.batches(order, self._shard, steps)
        with contextlib.closing(host_batches):
            on_devices, behind = pipeline.on_devices(host_batches, stage.batched), []
            for step, batch in zip(steps, on_devices, strict=True):
                behind.append(encode(self._weights, jax.random.fold_in(key, step), batch))
                if len(behind) > 1:
                    yield _to_host(*behind.pop(0))
            for features in behind:
                yield _to_host(*features)


def _weights_of_backbone(stage: Stage) -> tuple[Tree, Tree]:
    """Returns the `params` and `batch_stats` that a stage starts from; those of the head are 0."""
    if stage.initial_weights is None:
        weights = stage.training.initial_state()
    else:
        weights = jax.device_put(stage.initial_weights(), stage.replicated)
    return tuple(
        jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), forms)
        | {"backbone": weights[kind].get("backbone", {})}
        for kind, forms in zip(("params", "batch_stats"), stage.network.abstract, strict=True)
    )


def _look_for(file: FeatureFile) -> list[str]:
    """Returns how many rows of a file are there, then what there is to say of that."""
    file.path.parent.mkdir(parents=True, exist_ok=True)
    beside = file.path.parent.parent.parent.glob(f"*/{FEATURES_DIRECTORY}")
    if file.is_whole() or file.borrow([folder for folder in beside if folder != file.path.parent]):
        return [str(file.num_rows)]
    remarks = []
    if file.remove():
        remarks = [f"{file.path} is damaged, and its features are computed again."]
    check_space(file.path.parent, file.num_bytes, "What the frozen backbone computes")
    return [str(file.rows_done()), *remarks]


def _finish(file: FeatureFile, part: _Part, frozen: Frozen) -> list[str]:
    """Names the file of features that are all there; says nothing."""
    file.finish({"images": len(part.images.labels), "views": part.views, "model": frozen.model})
    return []


def _to_host(features: jax.Array, finite: jax.Array) -> np.ndarray:
    """Returns features, float16[B, d].

    Raises:
      InputError: if one is not finite.
    """
    if not finite:
        raise InputError(
            "The frozen backbone gives features that are not finite: its weights are damaged, or "
            "its arithmetic needs --config.model.dtype=float32."
        )
    return np.asarray(features)
