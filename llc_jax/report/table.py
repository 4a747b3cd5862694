"""The final figures of a run as a table."""

from collections.abc import Mapping

import rich.table

_ROWS = [
    ("linear", "linear classifier of the features"),
    ("class_code", "phase 1: B(C) f"),
    ("soft", "phase 2: soft, argmax of B(C) f"),
    ("mhd", "phase 2: MHD, nearest class code"),
    ("mhd_first", "phase 2: MHD, ties to the first class"),
    ("ed", "phase 2: ED, equal class code"),
    ("ed_official", "phase 2: ED, as the official code counts"),
]


def results_tables(results: Mapping[str, float]) -> list[rich.table.Table]:
    """Draws the figures of `results.json`; those that a run does not have are left out.

    Returns:
      A table of decoders and, where a run compares codebooks, one of those.
    """
    compared = [
        key.removeprefix("codebook/").removesuffix("unique")
        for key in results
        if key.startswith("codebook/") and key.endswith("unique")
    ]
    tables = [_decoders_table(results)]
    return [*tables, _codebooks_table(results, compared)] if len(compared) > 1 else tables


def _decoders_table(results: Mapping[str, float]) -> rich.table.Table:
    caption = []
    if "codebook/unique" in results:
        caption.append(f"{results['codebook/unique']} unique class codes")
        caption.append(f"least distance {results['codebook/min_distance']}")
    if "classification/bits_right" in results:
        caption.append(f"{results['classification/bits_right']:.2f} bits right")
    table = rich.table.Table(caption="; ".join(caption))
    table.add_column("decoder")
    table.add_column("accuracy", justify="right")
    table.add_column("top 5", justify="right")
    for key, title in _ROWS:
        if f"classification/{key}" in results:
            table.add_row(title, *(_percent(results, f"{key}{top}") for top in ("", "_top5")))
    return table


def _codebooks_table(results: Mapping[str, float], compared: list[str]) -> rich.table.Table:
    table = rich.table.Table()
    table.add_column("codebook")
    for title in ("unique", "least distance", "ED", "MHD", "soft"):
        table.add_column(title, justify="right")
    for own in compared:
        table.add_row(
            own.removesuffix("/") or "as above",
            *(str(results[f"codebook/{own}{name}"]) for name in ("unique", "min_distance")),
            *(_percent(results, f"{own}{name}") for name in ("ed", "mhd", "soft")),
        )
    return table


def _percent(results: Mapping[str, float], name: str) -> str:
    value = results.get(f"classification/{name}")
    return "" if value is None else f"{value:.2%}"
