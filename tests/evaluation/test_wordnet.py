import numpy as np
import pytest

import llc_jax
from llc_jax.codes.codebook import Codebook
from llc_jax.errors import InputError
from llc_jax.evaluation import superclasses, wordnet

# Hypernyms of nouns; the second noun of a line is the first hypernym.
NOUNS = {
    "entity": (),
    "animal": ("entity",),
    "pet": ("animal",),
    "dog": ("animal", "pet"),
    "cat": ("animal",),
    "tool": ("entity",),
    "hammer": ("tool",),
    "paris": ("entity",),
    **{f"{breed}_{kind}": (kind,) for kind in ("dog", "cat", "hammer") for breed in "abcdef"},
}
OFFSETS = {noun: f"{1000 + 40 * place:08d}" for place, noun in enumerate(NOUNS)}
LICENCE = "  1 This software and database is being provided to you.  \n"


def wnid(noun):
    return f"n{OFFSETS[noun]}"


def line(noun, hypernyms):
    """A line of data.noun, whose nouns have two words, a part and as many hypernyms as here."""
    symbol = "@i" if noun == "paris" else "@"
    pointers = ["%p 00009999 n 0000", *(f"{symbol} {OFFSETS[above]} n 0000" for above in hypernyms)]
    words = f"0a {noun} 0 " + " ".join(f"other_{number} 0" for number in range(9))
    return f"{OFFSETS[noun]} 05 n {words} {len(pointers):03d} {' '.join(pointers)} | a | word  \n"


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "data.noun"
    path.write_text(LICENCE + "".join(line(*item) for item in NOUNS.items()))
    return path


def test_a_superclass_is_the_widest_hypernym_that_is_not_too_wide(path, monkeypatch):
    breeds = [noun for noun in NOUNS if "_" in noun]
    for part, expected in [
        (1, {"dog": "entity", "cat": "entity", "hammer": "entity"}),
        (3, {"dog": "dog", "cat": "cat", "hammer": "tool"}),
    ]:
        monkeypatch.setattr(wordnet, "_CLASSES_PER_SUPERCLASS", part)
        found = wordnet.superclasses(path, [wnid(noun) for noun in breeds])
        assert found == {wnid(noun): wnid(expected[noun[2:]]) for noun in breeds}


def test_too_wide_hypernyms_leave_a_class_alone(path):
    # A superclass of 18 classes has two at most.
    nouns = [noun for noun in NOUNS if "_" in noun]
    found = wordnet.superclasses(path, [wnid(noun) for noun in nouns])
    assert found == {wnid(noun): wnid(noun) for noun in nouns}
    # A city is an instance, and a class may be a hypernym of others.
    found = wordnet.superclasses(path, [wnid(noun) for noun in ("paris", "a_dog", "b_dog", "dog")])
    assert found[wnid("paris")] == wnid("paris")
    assert found[wnid("a_dog")] == wnid("a_dog")
    assert found[wnid("dog")] == wnid("dog")


def test_the_file_is_a_hierarchy(path):
    nouns = ("b_dog", "a_hammer", "a_dog", "b_hammer")
    names = [wnid(noun) for noun in nouns]
    groups = superclasses.read(path, names)
    assert groups.tolist() == superclasses.read(str(path), names).tolist()
    assert groups[0] == groups[2] != groups[1] == groups[3]
    codebook = Codebook.from_numpy(np.array([[1, 1], [-1, 1], [1, -1], [-1, -1]]), names)
    figures = llc_jax.structure.describe(codebook, hierarchy=path).figures
    assert 0 <= figures["purity"] <= 1


def test_bad_input_is_named(path, tmp_path):
    with pytest.raises(InputError, match="has no noun 'cat'.* named by wnids of WordNet 3.0"):
        superclasses.read(path, ["cat"])
    text = path.read_text()
    for damaged, reason in [
        (text[:-200], "is no line of it"),
        (text.replace(" 0a ", " zz "), f"'{OFFSETS['entity']} 05 n zz"),
        ("class,superclass\n", "'class,superclass' is no line of it"),
        ("\xff", "can't decode byte"),
    ]:
        path.write_text(damaged, encoding="latin-1")
        with pytest.raises(InputError, match=f"is not WordNet's file of nouns .*{reason}"):
            superclasses.read(path, [wnid("a_dog")])
    path.write_text(text.replace(line("dog", NOUNS["dog"]), ""))
    with pytest.raises(InputError, match=f"has no noun {wnid('dog')!r}"):
        superclasses.read(path, [wnid("a_dog")])
    with pytest.raises(InputError, match="is not WordNet's file of nouns .*No such file"):
        superclasses.read(tmp_path / "other" / "data.noun", [wnid("a_dog")])
