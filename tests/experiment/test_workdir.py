import pytest

from llc_jax.errors import InputError
from llc_jax.experiment.workdir import read_config, read_results


@pytest.mark.parametrize("content", [b"", b'{"a": 1.', b"[]", b"\xff\xfe\x00"])
def test_damaged_files_are_named_with_what_to_do(tmp_path, content):
    for name in ("results.json", "config.json"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"results.json is damaged .* Remove it, and the command"):
        read_results(tmp_path / "results.json")
    with pytest.raises(InputError, match=r"config.json is damaged \("):
        read_config(tmp_path)


def test_no_results_are_no_figures(tmp_path):
    assert read_results(tmp_path / "results.json") == {}
