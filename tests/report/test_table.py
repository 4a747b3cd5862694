import rich.console

from llc_jax.report.table import results_tables

STAGES = ("backbone", "llc_10", "orthohash_64_seed_3")


def draw(results, width=80):
    console = rich.console.Console(width=width, record=True)
    for table in results_tables(results, STAGES, "llc_10"):
        console.print(table)
    return console.export_text()


def test_every_retrieval_row_names_its_stage_in_a_narrow_terminal():
    rankings = (
        "",
        "asymmetric/",
        "unseen/dot/",
        "linear/cosine/",
        "orthohash_64_seed_3/asymmetric/",
    )
    forms = ("cmap", "cmap_tie", "rmap")
    text = draw({f"retrieval/{ranking}{form}@1000": 0.5 for ranking in rankings for form in forms})
    titles = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    assert titles == [
        *("llc_10", "llc_10/asymmetric", "llc_10/unseen/dot", "linear/cosine"),
        "orthohash_64_seed_3/asymmetric",
    ]


def test_every_codebook_row_names_its_stage():
    results = {f"codebook/{prefix}unique": 9 for prefix in ("", "orthohash_64_seed_3/")}
    results |= {key.replace("unique", "min_distance"): 2 for key in results}
    text = draw(results)
    assert "llc_10 " in text
    assert "orthohash_64_seed_3 " in text
