"""From a stage's config to what training and evaluation need of it."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.data import pipeline
from llc_jax.errors import InputError
from llc_jax.evaluation.classification import Classification
from llc_jax.evaluation.decoding import Decoding
from llc_jax.evaluation.retrieval import Retrieval, Retrieved
from llc_jax.experiment import codebook_sources as codebooks
from llc_jax.experiment.config import OptimizerConfig, StageConfig, is_file
from llc_jax.experiment.setting import Setting, input_size, with_sharding
from llc_jax.models.heads import Output
from llc_jax.options import bind, choose
from llc_jax.training import optimizer
from llc_jax.training import state as states
from llc_jax.training import step as steps
from llc_jax.training.loop import Stage, Timetable
from llc_jax.training.objectives import OBJECTIVES, Figures
from llc_jax.training.state import State, Tree


def check_stage(setting: Setting, name: str) -> None:
    """Raises an InputError for whatever would stop the stage later."""
    stage, where = setting.config.stages[name], f"config.stages.{name}"
    objective_name, head_name = stage.objective.get("name"), stage.head.get("name")
    objective = choose(objective_name, OBJECTIVES, f"{where}.objective.name")
    _objective(stage, setting.config.prefixes)
    if head_name not in objective.heads:
        raise InputError(
            f"{where}.head.name is {' or '.join(map(repr, objective.heads))} for the objective "
            f"{objective_name!r}, not {head_name!r}."
        )
    if stage.mixup and "mask" in objective.needs:
        raise InputError(
            f"{where}.mixup is 0 for the objective {objective_name!r}, which compares the images "
            f"of a batch, not {stage.mixup}."
        )
    choose(stage.optimizer.schedule, optimizer.SCHEDULES, f"{where}.optimizer.schedule")
    setting.check_network(name)
    if is_file(stage.init_from):
        setting.pretrained_weights(name, stage.init_from)
    codebooks.check(setting, name)


def build_stage(setting: Setting, name: str, codebook: Codebook | None) -> Stage:
    """Builds what `train_stage` needs.

    Args:
      setting: the run's.
      name: of the stage.
      codebook: the fixed one of a stage that has it, or where a learnt one starts.
    """
    config, data, mesh = setting.config, setting.dataset(name), setting.mesh
    stage = config.stages[name]
    timetable = Timetable(
        num_examples=len(data.train.labels),
        batch_size=config.batch_size,
        epochs=stage.epochs,
        checkpoint_steps=config.checkpoint.steps,
        eval_epochs=config.eval_epochs,
    )
    network = setting.network(name)
    rate, sgd = _optimizer(stage.optimizer, timetable, network.frozen)
    objective = OBJECTIVES[stage.objective["name"]]
    key = jax.random.fold_in(jax.random.key(config.seed), setting.position(name))
    create = functools.partial(states.create, network, sgd, objective.figures, key)
    minimised = _objective(stage, config.prefixes)
    step = steps.make_step(
        network,
        minimised,
        sgd,
        data.augment,
        stage.mixup,
        needs=objective.needs,
        num_steps=timetable.num_steps,
    )
    fixed_codes = codebook is not None and objective.fixed_codebook

    begin_epoch = jax.jit(states.begin_epoch, out_shardings=setting.whole)

    def initial() -> State:
        state = states.create_on(setting.whole, create)
        return begin_epoch(_warm_start(setting, name, state, codebook))

    return Stage(
        name=name,
        timetable=timetable,
        step=steps.compile_step(step, mesh),
        begin_epoch=begin_epoch,
        initial=initial,
        abstract=with_sharding(jax.eval_shape(create), setting.whole),
        images=data.train,
        part=pipeline.ProcessShard.of(setting.rows, config.batch_size),
        sharding=setting.rows,
        seed=setting.seed(name),
        class_codes=jax.device_put(codebook.packed, setting.whole) if fixed_codes else None,
        learning_rate=rate,
        evaluate=evaluation(setting, name, codebook),
    )


def evaluation(
    setting: Setting, name: str, codebook: Codebook | None
) -> Callable[[State], dict[str, float]]:
    """Returns the function from a stage's state to its classification figures."""
    encode = _encoder(setting, name)

    def evaluate(state: State) -> dict[str, float]:
        class_codes = None if codebook is None else codebook.packed
        if "latent" in state["params"]["head"]:
            class_codes = packing.pack(state["params"]["head"]["latent"])
        encode_images = functools.partial(encode, state["params"], state["batch_stats"])
        classification = Classification(encode_images, class_codes, setting.config.prefixes)
        return classification.run(setting.eval_batches(setting.dataset(name).evaluation))

    return evaluate


def measure_decoders(
    setting: Setting, name: str, state: State, codebook: Codebook
) -> dict[str, float]:
    """Returns the accuracy and the throughput of the config's decoders after a stage."""
    encode = functools.partial(_encoder(setting, name), state["params"], state["batch_stats"])
    decoding = Decoding(encode, codebook, setting.config.decoders)
    return decoding.run(setting.eval_batches(setting.dataset(name).evaluation))


def measure_retrieval(setting: Setting, name: str, state: State) -> Retrieved:
    """Returns what the codes, or the features, of a stage are worth in retrieval.

    What is found among the classes that are held out of training is `unseen/...`.
    """
    network, weights = setting.network(name), (state["params"], state["batch_stats"])
    image = jax.ShapeDtypeStruct((1, *(input_size(setting.config),) * 2, 3), jnp.uint8)
    has_numbers = jax.eval_shape(network.evaluate, *weights, image).code_logits is not None

    def represent(*given: Tree) -> jax.Array:
        return network.evaluate(*given).code_logits if has_numbers else network.features(*given)

    shardings = (setting.whole, setting.whole, setting.rows)
    retrieval = Retrieval(
        functools.partial(jax.jit(represent, in_shardings=shardings), *weights),
        setting.config.retrieval,
        # The numbers of a real bottleneck are no code logits.
        codes=has_numbers and setting.config.stages[name].head.get("binary", True),
        prefixes=setting.config.prefixes,
        mesh=None if jax.default_backend() == "cpu" else setting.mesh,
    )
    figures, curves = {}, {}
    seen = setting.dataset(name)
    for which, data in {"": seen, "unseen/": seen.unseen}.items():
        if data is not None and len(data.evaluation.labels):
            batches = (setting.eval_batches(images) for images in (data.evaluation, data.database))
            found = retrieval.run(*batches, data.self_indices)
            figures |= {which + key: value for key, value in found.figures.items()}
            curves |= {which + key: value for key, value in found.curves.items()}
    return Retrieved(figures, curves)


def _encoder(setting: Setting, name: str) -> Callable[..., Output]:
    whole, rows = setting.whole, setting.rows
    return jax.jit(setting.network(name).evaluate, in_shardings=(whole, whole, rows))


def learnt_codebook(state: State, class_names: tuple[str, ...]) -> Codebook | None:
    """Returns the codebook that a stage has learnt, None where it learns none."""
    latent = state["params"]["head"].get("latent")
    if latent is None:
        return None
    return Codebook.from_numpy(jax.device_get(latent), class_names, codebooks.LEARNT)


def _objective(stage: StageConfig, prefixes: tuple[int, ...]) -> Callable[..., Figures]:
    options = dict(stage.objective)
    name = options.pop("name")
    function = bind(OBJECTIVES[name].function, options, f"The objective {name}")
    return functools.partial(function, prefixes=prefixes) if OBJECTIVES[name].nested else function


def _optimizer(
    config: OptimizerConfig, timetable: Timetable, frozen: Tree
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    steps_per_epoch = timetable.num_examples / timetable.batch_size
    rate = optimizer.schedule(
        config.learning_rate,
        kind=config.schedule,
        num_steps=timetable.num_steps,
        warmup_steps=round(config.warmup_epochs * steps_per_epoch),
    )
    sgd = optimizer.sgd(
        rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        codebook_rate=config.codebook_rate,
        frozen=frozen,
    )
    return rate, sgd


def _warm_start(setting: Setting, name: str, state: State, codebook: Codebook | None) -> State:
    """Takes over the weights, and a codebook where the stage learns one, that it starts from."""
    init_from = setting.config.stages[name].init_from
    if init_from in setting.config.stages:
        state = states.adopt(state, setting.trained_weights(init_from))
    elif is_file(init_from):
        weights = setting.pretrained_weights(name, init_from)
        state = states.adopt(state, jax.device_put(weights, setting.whole))
    if codebook is not None and "latent" in state["params"]["head"]:
        latent = jax.device_put(codebook.latent, setting.whole)
        head = state["params"]["head"] | {"latent": latent}
        state = state | {"params": state["params"] | {"head": head}}
    return state
