"""The final figures of a run as a table."""

from collections.abc import Mapping, Sequence, Set

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


def results_tables(
    results: Mapping[str, float], stages: Sequence[str], plain: str
) -> list[rich.table.Table]:
    """Draws the figures of `results.json`; those that a run does not have are left out.

    Args:
      results: by their flat names.
      stages: of the run.
      plain: the stage whose codes' figures have names without a stage.

    Returns:
      A table of decoders; where a run compares codebooks, one of those; and where it
      measures retrieval, one of that.
    """
    compared = [
        key.removeprefix("codebook/").removesuffix("unique")
        for key in results
        if key.startswith("codebook/") and key.endswith("unique")
    ]
    tables = [_decoders_table(results)]
    if len(compared) > 1:
        tables.append(_codebooks_table(results, compared, plain))
    cutoffs = [
        int(key.rpartition("@")[2])
        for key in results
        if key.startswith("retrieval/") and "/cmap@" in key
    ]
    return (
        [*tables, _retrieval_table(results, max(cutoffs), plain, {*stages, "linear"})]
        if cutoffs
        else tables
    )


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
    for key, title in _ROWS:
        if f"classification/{key}" in results:
            table.add_row(title, *(_percent(results, f"{key}{top}") for top in ("", "_top5")))
    return table


def _codebooks_table(
    results: Mapping[str, float], compared: list[str], plain: str
) -> rich.table.Table:
    table = rich.table.Table()
    table.add_column("codebook", no_wrap=True)
    for title in ("unique", "least distance", "ED", "MHD", "soft"):
        table.add_column(title, justify="right")
    for own in compared:
        table.add_row(
            own.removesuffix("/") or plain,
            *(str(results[f"codebook/{own}{name}"]) for name in ("unique", "min_distance")),
            *(_percent(results, f"{own}{name}") for name in ("ed", "mhd", "soft")),
        )
    return table


def _retrieval_table(
    results: Mapping[str, float], cutoff: int, plain: str, others: Set[str]
) -> rich.table.Table:
    """Draws each way to search at the largest cutoff; `others` are not those of `plain`."""
    table = rich.table.Table()
    table.add_column("retrieval by", no_wrap=True)
    columns = {"cmap": "MAP", "cmap_tie": "any order of ties", "rmap": "as HashNet reports it"}
    for title in columns.values():
        table.add_column(f"{title} @{cutoff}", justify="right")
    ending = f"/cmap@{cutoff}"
    for key in results:
        if key.startswith("retrieval/") and key.endswith(ending):
            way = key.removesuffix(ending)
            title = way.removeprefix("retrieval").removeprefix("/")
            if title.split("/")[0] not in others:
                title = "/".join(filter(None, (plain, title)))
            table.add_row(title, *(f"{results[f'{way}/{name}@{cutoff}']:.4f}" for name in columns))
    return table


def _percent(results: Mapping[str, float], name: str) -> str:
    value = results.get(f"classification/{name}")
    return "" if value is None else f"{value:.2%}"
