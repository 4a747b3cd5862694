"""Ways to search labelled embeddings that are trained: a classifier, LLC and its rivals."""

import argparse
import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import numpy as np
from embeddings_methods import Cost, Method, Pair, Search, Setting, timed
from ml_collections import ConfigDict
from scipy.special import softmax
from sklearn.preprocessing import normalize

from llc_jax.codes import packing
from llc_jax.compiling import jit_network
from llc_jax.configs import common
from llc_jax.data.pipeline import Images, InMemory
from llc_jax.evaluation.gathering import embed_images
from llc_jax.experiment import config as configs
from llc_jax.experiment import memory_run
from llc_jax.experiment.figures import classify
from llc_jax.models.heads import codes_of_predictions
from llc_jax.models.network import Tree
from llc_jax.training.logging import ProgressLog

RIVALS = {
    "csq": ("CSQ", common.csq),
    "orthohash": ("OrthoHash", common.orthohash),
    "hashnet": ("HashNet", common.hashnet),
    "greedy_hash": ("Greedy Hash", common.greedy_hash),
}


def run_config(size: int, options: argparse.Namespace) -> configs.RunConfig:
    """Returns the config of all that is trained on embeddings of `size` numbers.

    It is the recipe of `configs/embeddings_20bit.py`, with its hidden layers in the backbone,
    which gives the same networks, and shows what is before the bits. All start from one
    classifier, and train as long after it as the two phases of LLC together.
    """
    config, (linear, first, second) = common.base(), options.epochs
    config.seed, config.batch_size, config.min_steps = options.seed, 256, 300
    config.model = ConfigDict(
        {"name": "mlp", "width": options.width, "depth": options.depth, "dropout": 0.3}
    )
    config.data.embedding_size = size
    adamw = common.adamw(2e-3, warmup_epochs=1.0, codebook_rate=10.0)
    config.stages.linear = common.linear(linear, adamw)
    for bits in options.bits:
        config.stages[f"codebook_{bits}"] = common.codebook(
            first, adamw, num_bits=bits, logit_scale=bits**-0.5, init_from="linear"
        )
        config.stages[f"llc_{bits}"] = common.instance(
            second, adamw, num_bits=bits, init_from=f"codebook_{bits}"
        )
    for rival in options.rivals:
        for bits in options.rival_bits:
            config.stages[f"{rival}_{bits}"] = RIVALS[rival][1](
                first + second, adamw, num_bits=bits, init_from="linear"
            )
    return configs.parse(config.to_dict())


def trained_methods(
    setting: Setting, unit: Pair, search: Search, options: argparse.Namespace
) -> Iterator[Method]:
    """Trains the classifier, LLC and its rivals, and yields the methods of each stage."""
    dataset = dataclasses.replace(
        memory_run.dataset_of(*setting.train, setting.class_names),
        evaluation=InMemory(*setting.queries),
        database=InMemory(*setting.database),
    )
    config = run_config(unit.database.shape[1], options)
    stages, seconds = memory_run.train_stages(config, dataset, ProgressLog(quiet=True)), {}
    while True:
        trained, elapsed = timed(next, stages, None)
        if trained is None:
            return
        name = trained.stage.name
        seconds[name] = elapsed + seconds.get(config.stages[name].init_from, 0.0)
        methods = _METHODS.get(name.rpartition("_")[0] or name, _rival)
        accuracy = {}
        if setting.has_trained_classes:
            accuracy = dict(classify(trained.stage, trained.codebook, trained.weights).figures)
            if trained.codebook is not None:
                accuracy["unique"] = trained.codebook.num_unique
        for method in methods(trained, unit, search, seconds[name]):
            yield dataclasses.replace(method, accuracy=accuracy)
            accuracy = {}  # Of the first method alone.


def _classifier(
    trained: memory_run.TrainedStage, unit: Pair, search: Search, seconds: float
) -> Iterator[Method]:
    """Yields the ways to search with a classifier."""
    hidden, cost = _embed(trained, trained.stage.network.features, seconds)
    logits, _ = _embed(
        trained, lambda *inputs: trained.stage.network.evaluate(*inputs).class_logits, seconds
    )
    yield search.by_dots("classifier, logits, cosine", _map(normalize, logits), cost)
    yield search.by_dots("classifier, hidden floats, cosine", _map(normalize, hidden), cost)
    probabilities = _map(functools.partial(softmax, axis=1), logits)
    yield search.by_dots("classifier, softmax, dot product", probabilities, cost)
    bits = max(1, (logits.database.shape[1] - 1).bit_length())
    codes = _map(lambda array: packing.pack(codes_of_predictions(array, bits)), logits)
    number = search.by_bits("classifier, number of the class", codes, bits, cost)
    yield dataclasses.replace(number, bits=None)  # They follow from the number of classes.


def _first_phase(
    trained: memory_run.TrainedStage, unit: Pair, search: Search, seconds: float
) -> Iterator[Method]:
    """Yields the ways to search with phase 1 of LLC."""
    logits, cost = _code_logits(trained, seconds)
    bits = trained.stage.num_bits
    yield search.by_bits("LLC phase 1", _map(packing.pack_on_host, logits), bits, cost)
    yield search.by_dots("LLC phase 1, logits, dot product", logits, cost, bits)
    yield search.by_dots("LLC phase 1, logits, cosine", _map(normalize, logits), cost, bits)


def _second_phase(
    trained: memory_run.TrainedStage, unit: Pair, search: Search, seconds: float
) -> Iterator[Method]:
    """Yields the ways to search with LLC."""
    logits, cost = _code_logits(trained, seconds)
    codes = _map(packing.pack_on_host, logits)
    yield search.by_bits("LLC", codes, trained.stage.num_bits, cost)
    yield from search.rescored("LLC", logits, unit, cost)


def _rival(
    trained: memory_run.TrainedStage, unit: Pair, search: Search, seconds: float
) -> Iterator[Method]:
    """Yields the search with another method's codes."""
    logits, cost = _code_logits(trained, seconds)
    name = RIVALS[trained.stage.name.rpartition("_")[0]][0]
    codes = _map(packing.pack_on_host, logits)
    yield search.by_bits(name, codes, trained.stage.num_bits, cost)


# The methods of a stage, by its name without the bits.
_METHODS = {"linear": _classifier, "codebook": _first_phase, "llc": _second_phase}


def _code_logits(trained: memory_run.TrainedStage, seconds: float) -> tuple[Pair, Cost]:
    return _embed(
        trained, lambda *inputs: trained.stage.network.evaluate(*inputs).code_logits, seconds
    )


def _embed(
    trained: memory_run.TrainedStage,
    function: Callable[[Tree, Tree, jax.Array], jax.Array],
    seconds: float,
) -> tuple[Pair, Cost]:
    """Returns what a network makes of the queries and of the database, and what that costs.

    Args:
      trained: the stage.
      function: maps `params`, `batch_stats` and B inputs to float32[B, m].
      seconds: to train it.
    """
    stage = trained.stage
    weights = jax.device_put(trained.weights, stage.replicated)
    compiled = jit_network(function)
    embed = functools.partial(compiled, weights["params"], weights["batch_stats"])

    def embed_all(images: Images) -> np.ndarray:
        return embed_images(embed, stage.eval_batches(images)).embeddings

    queries = embed_all(stage.dataset.evaluation)  # The first call compiles.
    database, encode_seconds = timed(embed_all, stage.dataset.database)
    return Pair(queries, database), Cost(seconds, encode_seconds)


def _map(function: Callable, pair: Pair) -> Pair:
    return Pair(*(np.asarray(function(array)) for array in pair))
