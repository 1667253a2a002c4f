"""`python -m benchmarks.claim_ulp`: weights an ulp away from others."""

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from benchmarks import claim_ulp


@pytest.fixture
def file(tmp_path):
    """Weights with a zero, an odd name and metadata."""
    rng = np.random.default_rng(1)
    weights = {"a": rng.standard_normal((64, 8)).astype(np.float32), "b": np.zeros(3, np.float32)}
    save_file(weights, tmp_path / "w.safetensors", {"recipe": "some"})
    return tmp_path / "w.safetensors"


def test_each_number_moves_by_one_ulp_up_or_down(file):
    claim_ulp.main([str(file), str(file.with_name("m.safetensors"))])
    was, now = load_file(file)["a"], load_file(file.with_name("m.safetensors"))["a"]
    steps = now.view(np.int32) - was.view(np.int32)
    assert set(np.unique(steps)) == {-1, 1}
    assert 0.3 < (now > was).mean() < 0.7


def test_zeros_and_metadata_stay(file):
    claim_ulp.main([str(file), str(file.with_name("m.safetensors"))])
    with safe_open(file.with_name("m.safetensors"), "numpy") as moved:
        assert moved.metadata() == {"recipe": "some"}
        assert not moved.get_tensor("b").any()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["none.safetensors", "m.safetensors"], "none.safetensors"),
        (["w.safetensors", "w.safetensors"], "is there already"),
        (["w.safetensors", "away/m.safetensors"], "there is no folder"),
        (["text", "m.safetensors"], "is no safetensors file"),
        (["half.safetensors", "m.safetensors"], "h is float16"),
    ],
)
def test_what_cannot_be_moved_is_refused_in_a_line(file, words, says, monkeypatch, capsys):
    monkeypatch.chdir(file.parent)
    (file.parent / "text").write_text("no weights, " * 9)
    save_file({"h": np.ones(2, np.float16)}, "half.safetensors")
    with pytest.raises(SystemExit) as ended:
        claim_ulp.main(words)
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert says in said
    assert said.count("\n") == 1
    assert not (file.parent / "m.safetensors").exists()
