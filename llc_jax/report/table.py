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


def results_table(results: Mapping[str, float]) -> rich.table.Table:
    """Draws the figures of `results.json`; those that a run does not have are left out."""
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
            top5 = results.get(f"classification/{key}_top5")
            table.add_row(
                title,
                f"{results[f'classification/{key}']:.2%}",
                "" if top5 is None else f"{top5:.2%}",
            )
    return table
