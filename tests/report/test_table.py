import rich.console

from llc_jax.report.table import remarks, results_tables

STAGES = ("backbone", "llc_10", "orthohash_64_seed_3")


def draw(results, width=80):
    console = rich.console.Console(width=width, record=True)
    for table in results_tables(results, STAGES, "llc_10"):
        console.print(table)
    return console.export_text()


def rows(text):
    """The cells of each line of a drawn table."""
    lines = [line for line in text.splitlines() if line.startswith("│")]
    return [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]


def test_every_ranking_is_named_in_words_in_a_narrow_terminal():
    rankings = {
        "": "llc_10: bits",
        "asymmetric/": "llc_10: logits with bits",
        "prefix_8/": "llc_10: first 8 bits",
        "unseen/prefix_8/asymmetric/": "llc_10: unseen classes, logits with first 8 bits",
        "unseen/dot/": "llc_10: unseen classes, dot product of logits",
        "linear/cosine/": "linear: cosine of features",
        "orthohash_64_seed_3/asymmetric/": "orthohash_64_seed_3: logits with bits",
    }
    forms = ("cmap", "cmap_tie", "rmap", "precision")
    results = {f"retrieval/{ranking}{form}@1000": 0.5 for ranking in rankings for form in forms}
    results["retrieval/precision_radius_2"] = 0.5
    drawn = rows(draw(results))
    assert " ".join(row[0] for row in drawn).split() == " ".join(rankings.values()).split()
    assert {tuple(row[1:]) for row in drawn if row[1]} == {("1000", "0.5000", "0.5000", "0.5000")}


def test_every_ranking_of_an_ordinary_run_has_one_line():
    rankings = ("", "asymmetric/", "prefix_10/", "prefix_10/asymmetric/", "cosine/", "dot/")
    forms = ("cmap", "cmap_tie", "rmap")
    results = {
        f"retrieval/{stage}{ranking}{form}@1000": 0.5
        for stage in ("codebook/", "")
        for ranking in rankings
        for form in forms
    }
    console = rich.console.Console(width=80, record=True)
    for table in results_tables(results, ("codebook", "instance"), "instance"):
        console.print(table)
    drawn = rows(console.export_text())
    assert len(drawn) == 2 * len(rankings)
    assert drawn[3][0] == "codebook: logits with first 10 bits"


def test_retrieval_is_shown_at_every_rank():
    forms = ("cmap", "cmap_tie", "rmap")
    results = {f"retrieval/{form}@{k}": k / 1e4 for k in (1000, 10, 100) for form in forms}
    assert rows(draw(results)) == [
        ["llc_10: bits", "10", *["0.0010"] * 3],
        ["", "100", *["0.0100"] * 3],
        ["", "1000", *["0.1000"] * 3],
    ]


def test_decoders_have_a_table():
    results = {}
    for name, accuracy in (("codebook/ed", 0.25), ("ed", 0.5), ("chase_4_nearest", 0.75)):
        results |= {f"decoding/{name}/accuracy": accuracy, f"decoding/{name}/rejected": 0.125}
        results[f"decoding/{name}/codes_per_second"] = 1234567.8
    console = rich.console.Console(width=80, record=True)
    for table in results_tables(results, ("codebook", "instance"), "instance"):
        console.print(table)
    assert rows(console.export_text()) == [
        ["codebook", "ed", "25.00%", "12.50%", "1,234,568"],
        ["instance", "ed", "50.00%", "12.50%", "1,234,568"],
        ["instance", "chase_4_nearest", "75.00%", "12.50%", "1,234,568"],
    ]


def test_what_to_do_where_ed_is_far_below_mhd():
    assert remarks({"classification/ed": 0.7, "classification/mhd": 0.73}) == []
    assert remarks({"classification/linear": 0.73}) == []
    lines = remarks({"classification/ed": 0.449, "classification/mhd": 0.730})
    assert lines[0].startswith("ED (44.9%) is far below MHD (73.0%)")
    assert all(len(line) <= 80 for line in lines)


def test_skipped_images_are_told():
    counts = {"data/damaged_train": 2, "data/damaged_evaluation": 0}
    assert remarks(counts) == ["damaged images, skipped: 2 in training, 0 in the evaluation"]
    assert remarks(dict.fromkeys(counts, 0)) == []


def test_every_codebook_row_names_its_stage():
    results = {f"codebook/{prefix}unique": 9 for prefix in ("", "orthohash_64_seed_3/")}
    results |= {key.replace("unique", "min_distance"): 2 for key in results}
    text = draw(results)
    assert "llc_10 " in text
    assert "orthohash_64_seed_3 " in text
