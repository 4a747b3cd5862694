import jax
import numpy as np
import pytest

from llc_jax.errors import InputError
from llc_jax.training import state as states
from tests.training.test_step import build


def test_takes_over_backbone_and_projection():
    earlier = build("codebook")[0](1)
    later = states.warm_start(build("instance")[0](2), earlier)
    for name in ("params", "batch_stats"):
        jax.tree.map(
            np.testing.assert_array_equal, later[name]["backbone"], earlier[name]["backbone"]
        )
    projection = later["params"]["head"]["projection"]["kernel"]
    np.testing.assert_array_equal(projection, earlier["params"]["head"]["projection"]["kernel"])
    assert set(later["params"]["head"]) == {"projection"}


def test_keeps_what_the_heads_do_not_share():
    earlier = build("softmax")[0](1)
    fresh = build("codebook")[0](2)
    later = states.warm_start(fresh, earlier)
    jax.tree.map(np.testing.assert_array_equal, later["params"]["head"], fresh["params"]["head"])


def test_statistics_of_a_head_stay_with_it():
    normalised = build("orthohash")[0](1)
    assert normalised["batch_stats"]["head"]
    plain = states.warm_start(build("instance")[0](2), normalised)
    assert "head" not in plain["batch_stats"]
    again = states.warm_start(build("orthohash")[0](3), plain)
    assert jax.tree.structure(again) == jax.tree.structure(normalised)


def test_another_backbone_is_an_error():
    earlier = build("codebook")[0](1)
    other = build("instance", model="resnet8_small")[0](2)
    with pytest.raises(InputError, match="both stages need the same model"):
        states.warm_start(other, earlier)
