import itertools
import json
import re

import numpy as np
import pytest
import scipy.cluster.hierarchy
import scipy.stats

import llc_jax
from llc_jax.codes.codebook import Codebook
from llc_jax.errors import InputError
from llc_jax.evaluation import dendrogram, similarity, structure, superclasses


def random_codebook(classes, bits, seed=0, names=None):
    latent = np.random.default_rng(seed).choice([-1.0, 1.0], (classes, bits))
    return Codebook.from_numpy(latent, names)


def leaf_sets(linkage):
    """The classes below each node."""
    size = len(linkage) + 1
    below = [{leaf} for leaf in range(size)]
    for left, right in linkage[:, :2].astype(int):
        below.append(below[left] | below[right])
    return below


def purity_by_hand(linkage, groups):
    """Dendrogram purity over all ordered pairs, each weighted as Heller and Ghahramani draw it."""
    below, drawn = leaf_sets(linkage), []
    for first in range(len(groups)):
        shares = []
        for second in range(len(groups)):
            if second != first and groups[second] == groups[first]:
                smallest = min((s for s in below if {first, second} <= s), key=len)
                shares.append(np.mean([groups[leaf] == groups[first] for leaf in smallest]))
        if shares:
            drawn.append(np.mean(shares))
    return np.mean(drawn)


def read_newick(text):
    """Reads Newick text: (name or children, length of the branch above)."""
    tokens = re.findall(r"'(?:[^']|'')*'|[(),:;]|[^'(),:;]+", text)
    position = 0

    def node():
        nonlocal position
        if tokens[position] == "(":
            content = []
            while tokens[position] in "(,":
                position += 1
                content.append(node())
            assert tokens[position] == ")"
            position += 1
        else:
            content = tokens[position]
            if content[0] == "'":
                content = content[1:-1].replace("''", "'")
            else:
                assert not set(content) & set("_ []'")
            position += 1
        length = 0.0
        if tokens[position] == ":":
            length = float(tokens[position + 1])
            position += 2
        return content, length

    root = node()
    assert tokens[position:] == [";"]
    return root


def newick_leaves(node, below=0.0):
    """Yields each leaf from left to right, with its distance from the root."""
    content, length = node
    if isinstance(content, str):
        yield content, below + length
    else:
        for child in content:
            yield from newick_leaves(child, below + length)


@pytest.mark.parametrize(("classes", "bits"), [(2, 1), (12, 3), (30, 20), (25, 70)])
def test_distances_and_merges_are_those_of_the_codes(classes, bits):
    codebook = random_codebook(classes, bits)
    codes = np.sign(codebook.latent)
    distances = dendrogram.pairwise_distances(codebook)
    pairs = list(itertools.combinations(range(classes), 2))
    assert distances.tolist() == [int(np.sum(codes[a] != codes[b])) for a, b in pairs]
    by_pair = dict(zip(pairs, distances, strict=True))
    linkage = dendrogram.link(distances, seed=3)
    assert scipy.cluster.hierarchy.is_valid_linkage(linkage)
    below = leaf_sets(linkage)
    for left, right, height, count in linkage:
        between = itertools.product(below[int(left)], below[int(right)])
        mean = np.mean([by_pair[min(pair), max(pair)] for pair in between])
        assert height == pytest.approx(mean)
        assert count == len(below[int(left)] | below[int(right)])


def test_codes_far_apart_are_clustered_alike_in_any_order():
    latent = np.where(np.arange(16) < np.array([0, 1, 3, 8, 16])[:, None], 1, -1)
    expected = {frozenset(s) for s in [{0, 1}, {0, 1, 2}, {0, 1, 2, 3}, {0, 1, 2, 3, 4}]}
    distances = dendrogram.pairwise_distances(Codebook.from_numpy(latent))
    for seed in range(20):
        assert {frozenset(s) for s in leaf_sets(dendrogram.link(distances, seed))[5:]} == expected


def test_the_order_of_classes_does_not_decide_ties():
    equal = np.ones(8 * 7 // 2)
    trees = [dendrogram.link(equal, seed) for seed in range(400)]
    first = np.zeros((8, 8))
    for tree in trees:
        a, b = sorted(tree[0, :2].astype(int))
        first[a, b] += 1
    counts = first[np.triu_indices(8, 1)]
    assert scipy.stats.chisquare(counts).pvalue > 1e-4
    np.testing.assert_array_equal(dendrogram.link(equal, 5), trees[5])


def test_newick_gives_back_the_tree():
    strange = ["aquarium_fish", "it's", "a, b", "(x)", "[y]", "p:q;", "two words", "ä", "", "''"]
    names = tuple(strange + [f"class-{number}.0" for number in range(10)])
    tree = dendrogram.cluster(random_codebook(20, 6, names=names))
    assert sorted(tree.leaves) == list(range(20))
    text = tree.newick()
    assert "'aquarium_fish'" in text
    assert "'it''s'" in text
    assert "(class-0.0:" in text or ",class-0.0:" in text
    leaves = list(newick_leaves(read_newick(text)))
    assert [name for name, _ in leaves] == [names[leaf] for leaf in tree.leaves]
    depth = [depth for _, depth in leaves]
    np.testing.assert_allclose(depth, tree.linkage[-1, 2] / 2, rtol=1e-4)
    together = {}

    def visit(node):
        content, _ = node
        if isinstance(content, str):
            return [content]
        below = [visit(child) for child in content]
        height = next(newick_leaves((content, 0.0)))[1]
        for a, b in itertools.product(*below):
            together[a, b] = together[b, a] = 2 * height
        return [name for names in below for name in names]

    visit(read_newick(text))
    cophenetic = scipy.cluster.hierarchy.cophenet(tree.linkage)
    for (a, b), distance in zip(itertools.combinations(names, 2), cophenetic, strict=True):
        assert together[a, b] == pytest.approx(distance, abs=1e-3)


def test_one_class_and_equal_codes_have_trees():
    assert dendrogram.cluster(Codebook.random(1, 4)).newick() == "0;"
    tree = dendrogram.cluster(Codebook.from_numpy(np.ones((3, 2)), ["a", "b", "c"]))
    assert sorted(newick_leaves(read_newick(tree.newick()))) == [("a", 0), ("b", 0), ("c", 0)]


def test_a_long_chain_is_written_without_recursion():
    codebook = Codebook.from_numpy(np.where(np.tri(600, 600) > 0, 1, -1))
    assert dendrogram.cluster(codebook).newick().count("(") == 599


@pytest.mark.parametrize("seed", range(6))
def test_purity_equals_that_of_all_pairs(seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(1 + 2 * seed, size=24)
    distances = dendrogram.pairwise_distances(random_codebook(24, 5, seed))
    linkage = dendrogram.link(distances, seed)
    purity = superclasses.dendrogram_purity(linkage, groups)
    assert purity == pytest.approx(purity_by_hand(linkage, groups))


def test_purity_by_hand_of_a_small_tree():
    linkage = np.array([[0, 1, 1, 2], [2, 3, 1, 2], [4, 5, 2, 4]], float)
    assert superclasses.dendrogram_purity(linkage, np.array([0, 0, 1, 1])) == 1
    assert superclasses.dendrogram_purity(linkage, np.array([0, 1, 0, 1])) == 0.5
    # Classes 0, 1: share 1. Classes 0, 2 and 1, 2: share 3/4. Class 3 is alone.
    mean = np.mean([(1 + 3 / 4) / 2, (1 + 3 / 4) / 2, 3 / 4])
    assert superclasses.dendrogram_purity(linkage, np.array([0, 0, 0, 1])) == pytest.approx(mean)
    # A draw starts at each class alike: the larger superclass has more weight.
    groups = np.array([0, 0, 0, 1, 1])
    linkage = np.array([[0, 3, 1, 2], [1, 2, 1, 2], [5, 4, 2, 3], [6, 7, 3, 5]], float)
    expected = (3 * np.mean([1, 3 / 5, 3 / 5]) + 2 * (2 / 3)) / 5
    assert superclasses.dendrogram_purity(linkage, groups) == pytest.approx(expected)


def test_nearest_agreement_counts_ties_in_part():
    codes = np.array([[1, 1, 1], [1, 1, -1], [1, -1, 1], [-1, -1, 1], [-1, -1, 1]])
    distances = dendrogram.pairwise_distances(Codebook.from_numpy(codes))
    groups = np.array([0, 0, 1, 1, 2])
    # Class 0: 1 and 2 are nearest. Class 1: 0. Class 2: 0, 3 and 4. Class 3: 4. Class 4 is alone.
    expected = np.mean([1 / 2, 1, 1 / 3, 0])
    assert superclasses.nearest_agreement(distances, groups) == pytest.approx(expected)


def test_spearman_equals_scipys_of_each_class():
    rng = np.random.default_rng(0)
    codes = rng.choice([-1, 1], (15, 6))
    real = rng.normal(size=(15, 40))
    first, second = similarity.inner_products(codes), similarity.inner_products(real)
    np.testing.assert_array_equal(first, codes @ codes.T)
    expected = []
    for row in range(15):
        others = [column for column in range(15) if column != row]
        expected.append(scipy.stats.spearmanr(first[row, others], second[row, others]).statistic)
    np.testing.assert_allclose(similarity.spearman(first, second), expected)
    np.testing.assert_allclose(similarity.spearman(second, second), 1)
    order = rng.permutation(15)
    ordered = similarity.inner_products(real, order)
    np.testing.assert_allclose(ordered, second[np.ix_(order, order)], rtol=1e-5)


def test_spearman_is_0_where_a_class_has_equal_products_only():
    hadamard = similarity.inner_products(scipy.linalg.hadamard(8))
    other = similarity.inner_products(np.random.default_rng(0).normal(size=(8, 3)))
    np.testing.assert_array_equal(similarity.spearman(hadamard, other), np.zeros(8))


SUPERCLASSES = {"cat": "animal", "dog": "animal", "oak": "plant", "rose": "plant", "x": "y"}


def test_superclasses_are_read_from_every_form(tmp_path):
    lists = {"animal": ["cat", "dog"], "plant": ["oak", "rose"], "y": ["x"]}
    lines = "".join(f"{name},{above}\n" for name, above in SUPERCLASSES.items())
    (tmp_path / "a.json").write_text(json.dumps(SUPERCLASSES))
    (tmp_path / "b.json").write_text(json.dumps(lists))
    (tmp_path / "a.csv").write_text(lines)
    (tmp_path / "b.csv").write_text("class,superclass\n" + lines + "\n")
    files = sorted(tmp_path.iterdir())
    for source in (SUPERCLASSES, lists, *files, str(files[0])):
        groups = superclasses.read(source, ("oak", "cat", "rose", "dog"))
        assert groups.tolist() == [1, 0, 1, 0]


def test_figures_of_codes_that_follow_the_hierarchy():
    names = [f"{group}{member}" for group in "abcde" for member in range(4)]
    rng = np.random.default_rng(0)
    centers = np.repeat(rng.normal(size=(5, 64)), 4, axis=0)
    representations = centers + 0.3 * rng.normal(size=(20, 64))
    codebook = Codebook.from_numpy(representations, names)
    hierarchy = {name: name[0] for name in names}
    found = llc_jax.structure.describe(codebook, representations, hierarchy, repeats=5)
    assert found.figures["purity"] == 1
    assert found.figures["purity_std"] == 0
    assert found.figures["nearest_agreement"] == 1
    assert found.figures["spearman"] > 0.7
    assert found.figures["random/nearest_agreement"] == pytest.approx(3 / 19, abs=0.2)
    assert abs(found.figures["random/spearman"]) < 0.2
    assert found.figures["random/purity"] < 0.6
    assert found.figures["random/purity_std"] > 0
    signs = np.sign(codebook.latent)[found.dendrogram.leaves]
    np.testing.assert_array_equal(found.code_products, signs @ signs.T)
    real = representations[found.dendrogram.leaves]
    np.testing.assert_allclose(found.representation_products, real @ real.T, rtol=1e-4, atol=1e-4)
    again = structure.describe(codebook, representations, hierarchy, repeats=5)
    assert again.figures == found.figures
    alone = structure.describe(codebook)
    assert alone.figures == {}
    assert alone.representation_products is None


def test_random_codes_have_the_purity_of_random_codes():
    codebook = Codebook.random(40, 12, seed=99)
    hierarchy = {str(number): str(number // 4) for number in range(40)}
    figures = structure.describe(codebook, hierarchy=hierarchy, repeats=8).figures
    deviation = figures["random/purity_std"]
    assert abs(figures["purity"] - figures["random/purity"]) < 5 * deviation


def test_bad_input_is_named(tmp_path):
    names = ("cat", "dog")
    (tmp_path / "three.csv").write_text("cat,animal,4 legs\n")
    (tmp_path / "list.json").write_text('["cat"]')
    (tmp_path / "torn.json").write_text('{"cat"')
    for source, message in [
        ({"cat": "animal", "dogs": "animal"}, "no superclass for 'dog': add it. Did you mean"),
        ({}, "no superclass for 'cat', 'dog': add it."),
        ({"cat": 3, "dog": "animal"}, "has 3 for 'cat'"),
        ({"a": ["cat", "dog"], "b": ["cat"]}, "'cat' in two superclasses, 'a' and 'b'"),
        (tmp_path / "three.csv", "a line has 3 columns"),
        (tmp_path / "list.json", "no names at its top"),
        (tmp_path / "torn.json", "is no hierarchy of classes"),
        (tmp_path / "none.csv", "No such file"),
    ]:
        with pytest.raises(InputError, match=message):
            superclasses.read(source, names)
    alone = np.arange(2)
    with pytest.raises(InputError, match="alone in its superclass"):
        superclasses.dendrogram_purity(dendrogram.link(np.ones(1)), alone)
    with pytest.raises(InputError, match="a superclass for each of the 3 classes, not for 2"):
        superclasses.nearest_agreement(np.ones(3), alone)
    codebook = Codebook.random(4, 3)
    with pytest.raises(InputError, match="4 classes, but there are representations of 5"):
        structure.describe(codebook, np.ones((5, 2)))
    with pytest.raises(InputError, match="repeats is 1 or more, not 0"):
        structure.describe(codebook, repeats=0)
    with pytest.raises(InputError, match=r"real\[L, d\], not float64\[4\]"):
        structure.describe(codebook, np.ones(4))
    with pytest.raises(InputError, match="NaN or inf"):
        structure.describe(codebook, np.full((4, 2), np.nan))
    with pytest.raises(InputError, match="three classes or more, not of 2 and 2"):
        similarity.spearman(np.eye(2), np.eye(2))
    with pytest.raises(InputError, match=r"square matrix, not \[2, 3\]"):
        similarity.spearman(np.ones((2, 3)), np.eye(3))
