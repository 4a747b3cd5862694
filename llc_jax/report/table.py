"""The final figures of a run as tables."""

from collections.abc import Mapping, Sequence, Set

import rich.table

from llc_jax.report.ood import ood_table

_DECODER_TITLES = [
    ("linear", "linear classifier of the features"),
    ("class_code", "phase 1: B(C) f"),
    ("soft", "phase 2: soft, argmax of B(C) f"),
    ("mhd", "phase 2: MHD, nearest class code"),
    ("mhd_first", "phase 2: MHD, ties to the first class"),
    ("ed", "phase 2: ED, equal class code"),
    ("ed_official", "phase 2: ED, as the official code counts"),
]


# What a ranking compares, by the last part of its name; it has no such part for codes alone.
_WAYS = {
    "": "bits",
    "asymmetric": "logits with bits",
    "cosine": "cosine of logits",
    "dot": "dot product of logits",
}

# ED is far below MHD if it is lower by so much.
_FAR_BELOW = 0.1


def results_tables(
    results: Mapping[str, float], stages: Sequence[str], unprefixed_stage: str
) -> list[rich.table.Table]:
    """Draws the figures of `results.json`; those that a run does not have are left out.

    Args:
      results: the figures by their flat names.
      stages: the names of the run's stages.
      unprefixed_stage: the stage of codes whose figures' names do not start with its name.

    Returns:
      A table of accuracies; where a run compares codebooks, a table of codebooks; where it
      measures decoders, a table of them; where it measures retrieval, a table of that; and
      where it has unknown images, one of how well they are told.
    """
    codebook_prefixes = [
        key.removeprefix("codebook/").removesuffix("unique")
        for key in results
        if key.startswith("codebook/") and key.endswith("unique")
    ]
    tables = [_decoders_table(results)]
    if len(codebook_prefixes) > 1:
        tables.append(_codebooks_table(results, codebook_prefixes, unprefixed_stage))
    prefixes = {*stages, "linear"}
    for kind, draw in (("decoding", _decoding_table), ("retrieval", _retrieval_table)):
        figures = _by_row(results, kind, prefixes, unprefixed_stage)
        if figures:
            tables.append(draw(figures))
    return [*tables, *filter(None, [ood_table(results)])]


def remarks(results: Mapping[str, float]) -> list[str]:
    """Returns what there is to say of the figures of `results.json`, in lines; often nothing."""
    return [*_damage(results), *_advice(results)]


def _damage(results: Mapping[str, float]) -> list[str]:
    train, evaluation = (results.get(f"data/damaged_{name}", 0) for name in ("train", "evaluation"))
    if not train and not evaluation:
        return []
    return [f"damaged images, skipped: {train} in training, {evaluation} in the evaluation"]


def _advice(results: Mapping[str, float]) -> list[str]:
    ed, mhd = (results.get(f"classification/{name}") for name in ("ed", "mhd"))
    if ed is None or mhd - ed < _FAR_BELOW:
        return []
    return [
        f"ED ({ed:.1%}) is far below MHD ({mhd:.1%}): many codes differ from their class's code",
        "in a few bits. Classify with mhd, as llc classify does, or with chase_4; fewer",
        "bits (--config.num_bits) or more epochs of phase 2 bring ED nearer to MHD.",
    ]


def _by_row(
    results: Mapping[str, float], kind: str, prefixes: Set[str], unprefixed_stage: str
) -> dict[tuple[str, str], dict[str, float]]:
    """Groups figures `<kind>/<stage>/<what>/<name>` by stage and what is measured.

    Names that start with none of `prefixes` are those of `unprefixed_stage`.
    """
    rows = {}
    for key, value in results.items():
        of_kind, _, rest = key.partition("/")
        if of_kind != kind:
            continue
        what, _, name = rest.rpartition("/")
        stage, _, after = what.partition("/")
        row = (stage, after) if stage in prefixes else (unprefixed_stage, what)
        rows.setdefault(row, {})[name] = value
    return rows


def decoder_figures(
    results: Mapping[str, float], stages: Sequence[str], unprefixed_stage: str
) -> list[tuple[str, str, float, float]]:
    """Returns the stage, the name, the accuracy and the codes a second of each decoder.

    Args: as of `results_tables`.
    """
    rows = _by_row(results, "decoding", {*stages, "linear"}, unprefixed_stage)
    return [
        (stage, decoder, figures["accuracy"], figures["codes_per_second"])
        for (stage, decoder), figures in rows.items()
    ]


def _decoding_table(rows: Mapping[tuple[str, str], Mapping[str, float]]) -> rich.table.Table:
    """Draws accuracy and speed of each decoder of each stage."""
    table = rich.table.Table()
    table.add_column("codes of stage", no_wrap=True)
    table.add_column("decoder", no_wrap=True)
    for title in ("accuracy", "rejected", "codes per second"):
        table.add_column(title, justify="right")
    for (stage, decoder), figures in rows.items():
        shares = (f"{figures[name]:.2%}" for name in ("accuracy", "rejected"))
        table.add_row(stage, decoder, *shares, f"{figures['codes_per_second']:,.0f}")
    return table


def _decoders_table(results: Mapping[str, float]) -> rich.table.Table:
    caption = []
    if "codebook/unique" in results:
        caption.append(f"{results['codebook/unique']} unique class codes")
        caption.append(f"least distance {results['codebook/min_distance']}")
    if "classification/bits_right" in results:
        caption.append(f"{results['classification/bits_right']:.2f} bits right")
    table = rich.table.Table(caption="; ".join(caption))
    table.add_column("decoder", no_wrap=True)
    table.add_column("accuracy", justify="right")
    table.add_column("top 5", justify="right")
    for key, title in _DECODER_TITLES:
        if f"classification/{key}" in results:
            table.add_row(title, *(_percent(results, f"{key}{top}") for top in ("", "_top5")))
    return table


def _codebooks_table(
    results: Mapping[str, float], prefixes: list[str], unprefixed_stage: str
) -> rich.table.Table:
    table = rich.table.Table()
    table.add_column("codebook", no_wrap=True)
    for title in ("unique", "least distance", "ED", "MHD", "soft"):
        table.add_column(title, justify="right")
    for prefix in prefixes:
        table.add_row(
            prefix.removesuffix("/") or unprefixed_stage,
            *(str(results[f"codebook/{prefix}{name}"]) for name in ("unique", "min_distance")),
            *(_percent(results, f"{prefix}{name}") for name in ("ed", "mhd", "soft")),
        )
    return table


def _retrieval_table(rows: Mapping[tuple[str, str], Mapping[str, float]]) -> rich.table.Table:
    """Draws each ranking's figures at each cutoff."""
    table = rich.table.Table()
    table.add_column("retrieval by")
    table.add_column("at rank", justify="right")
    columns = {"cmap": "MAP", "cmap_tie": "any order\nof ties", "rmap": "as in\nHashNet"}
    for title in columns.values():
        table.add_column(title, justify="right")
    for (stage, ranking), figures in rows.items():
        title = f"{stage}: {ranking_title(ranking, stage)}"
        for cutoff in sorted(int(n.removeprefix("cmap@")) for n in figures if n[:5] == "cmap@"):
            values = (f"{figures[f'{name}@{cutoff}']:.4f}" for name in columns)
            table.add_row(title, str(cutoff), *values)
            title = ""
    return table


def ranking_title(ranking: str, stage: str) -> str:
    """Puts a ranking such as `unseen/prefix_8/asymmetric` into words."""
    parts = list(filter(None, ranking.split("/")))
    way = _WAYS[parts.pop() if parts and parts[-1] in _WAYS else ""]
    if stage == "linear":
        way = way.replace("logits", "features")
    for part in parts:
        if part == "unseen":
            way = f"unseen classes, {way}"
        else:
            way = way.replace("bits", f"first {part.removeprefix('prefix_')} bits")
    return way


def _percent(results: Mapping[str, float], name: str) -> str:
    value = results.get(f"classification/{name}")
    return "" if value is None else f"{value:.2%}"
