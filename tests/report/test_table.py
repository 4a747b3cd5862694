import rich.console

from llc_jax.report.table import results_tables

STAGES = ("backbone", "llc_10", "orthohash_64_seed_3")


def drawn(results, width=80):
    console = rich.console.Console(width=width, record=True)
    for table in results_tables(results, STAGES, "llc_10"):
        console.print(table)
    return console.export_text()


def test_every_row_of_retrieval_says_whose_it_is_in_a_narrow_terminal():
    ways = ("", "asymmetric/", "unseen/dot/", "linear/cosine/", "orthohash_64_seed_3/asymmetric/")
    forms = ("cmap", "cmap_tie", "rmap")
    text = drawn({f"retrieval/{way}{form}@1000": 0.5 for way in ways for form in forms})
    titles = [line.split("│")[1].strip() for line in text.splitlines() if line.startswith("│")]
    assert titles == [
        *("llc_10", "llc_10/asymmetric", "llc_10/unseen/dot", "linear/cosine"),
        "orthohash_64_seed_3/asymmetric",
    ]


def test_codebooks_are_told_apart():
    results = {f"codebook/{own}unique": 9 for own in ("", "orthohash_64_seed_3/")}
    results |= {key.replace("unique", "min_distance"): 2 for key in results}
    text = drawn(results)
    assert "llc_10 " in text
    assert "orthohash_64_seed_3 " in text
