"""What runs where XLA_FLAGS ask a GPU for programs that give the same bits every time."""

from types import SimpleNamespace

import numpy as np
import pytest

from jaxgpt import mesh

DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def of(platform: str):
    """As much of a mesh as is asked for its platform."""
    return SimpleNamespace(devices=np.array([SimpleNamespace(platform=platform)]))


@pytest.mark.parametrize(
    ("platform", "flags", "attention"),
    [
        ("cpu", "", "exact"),
        ("gpu", "", "fast"),
        ("tpu", DETERMINISTIC, "fast"),
        ("gpu", DETERMINISTIC, "exact"),
        ("cuda", "--xla_gpu_autotune_level=0 --xla_gpu_exclude_nondeterministic_ops=1", "exact"),
        ("gpu", "--xla_gpu_deterministic_ops", "exact"),
        ("gpu", "--xla_gpu_deterministic_ops=false", "fast"),
        ("gpu", f"--xla_gpu_deterministic_ops=false {DETERMINISTIC}", "exact"),
        ("gpu", "--xla_gpu_enable_command_buffer=", "fast"),
    ],
)
def test_attention_is_written_out_on_a_gpu_that_is_to_be_deterministic(monkeypatch, platform, flags, attention):
    monkeypatch.setenv("XLA_FLAGS", flags)
    assert mesh.attention(of(platform)) == attention
