"""The final figures of a run as tables."""

from collections.abc import Mapping, Sequence, Set

import rich.table

_DECODER_TITLES = [
    ("linear", "linear classifier of the features"),
    ("class_code", "phase 1: B(C) f"),
    ("soft", "phase 2: soft, argmax of B(C) f"),
    ("mhd", "phase 2: MHD, nearest class code"),
    ("mhd_first", "phase 2: MHD, ties to the first class"),
    ("ed", "phase 2: ED, equal class code"),
    ("ed_official", "phase 2: ED, as the official code counts"),
]


def results_tables(
    results: Mapping[str, float], stages: Sequence[str], unprefixed_stage: str
) -> list[rich.table.Table]:
    """Draws the figures of `results.json`; those that a run does not have are left out.

    Args:
      results: the figures by their flat names.
      stages: the names of the run's stages.
      unprefixed_stage: the stage of codes whose figures' names do not start with its name.

    Returns:
      A table of decoders; where a run compares codebooks, a table of codebooks; and where
      it measures retrieval, a table of retrieval.
    """
    codebook_prefixes = [
        key.removeprefix("codebook/").removesuffix("unique")
        for key in results
        if key.startswith("codebook/") and key.endswith("unique")
    ]
    tables = [_decoders_table(results)]
    if len(codebook_prefixes) > 1:
        tables.append(_codebooks_table(results, codebook_prefixes, unprefixed_stage))
    cutoffs = [
        int(key.rpartition("@")[2])
        for key in results
        if key.startswith("retrieval/") and "/cmap@" in key
    ]
    if cutoffs:
        prefixes = {*stages, "linear"}
        tables.append(_retrieval_table(results, max(cutoffs), prefixes, unprefixed_stage))
    return tables


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


def _retrieval_table(
    results: Mapping[str, float], cutoff: int, prefixes: Set[str], unprefixed_stage: str
) -> rich.table.Table:
    """Draws each ranking's figures at a cutoff, titled by its stage and what it ranks by.

    Names that start with none of `prefixes` are those of `unprefixed_stage`.
    """
    table = rich.table.Table()
    table.add_column("retrieval by", no_wrap=True)
    columns = {"cmap": "MAP", "cmap_tie": "any order of ties", "rmap": "as HashNet reports it"}
    for title in columns.values():
        table.add_column(f"{title} @{cutoff}", justify="right")
    suffix = f"/cmap@{cutoff}"
    for key in results:
        if key.startswith("retrieval/") and key.endswith(suffix):
            ranking = key.removesuffix(suffix)
            title = ranking.removeprefix("retrieval").removeprefix("/")
            if title.split("/")[0] not in prefixes:
                title = "/".join(filter(None, (unprefixed_stage, title)))
            table.add_row(
                title, *(f"{results[f'{ranking}/{name}@{cutoff}']:.4f}" for name in columns)
            )
    return table


def _percent(results: Mapping[str, float], name: str) -> str:
    value = results.get(f"classification/{name}")
    return "" if value is None else f"{value:.2%}"
