"""Models by shape: the sizes that their presets promise."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from hfbsz.errors import UserError
from hfbsz.loading import load
from hfbsz.model import _config, count_parameters

SIZES = {  # all weights, and those outside embeddings and head
    "tiny": (1.05e6, 0.79e6),
    "tiny_gpt2": (1.19e6, 0.79e6),
    "gpt2_124m": (124.5e6, 85.1e6),
    "smollm2_135m": (134.5e6, 106.2e6),
    "llama_360m": (361.8e6, 314.6e6),
    "qwen3_0_6b": (596.0e6, 440.5e6),
}


@pytest.mark.parametrize("preset", SIZES)
def test_a_preset_has_the_size_that_it_names(preset):
    wanted = load([f"model={preset}"]).recipe.model
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_config(dict(wanted.shape), {"vocab_size": 2048}))
    counts = model.num_parameters(), count_parameters(wanted, 2048)
    assert counts == pytest.approx(SIZES[preset], rel=5e-3)


def test_the_vocabulary_does_not_enter_the_count():
    wanted = load(["model=tiny"]).recipe.model
    assert count_parameters(wanted, 2048) == count_parameters(wanted, 50_000)


def test_a_model_that_cannot_be_counted_is_one_line(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for path in (str(tmp_path), str(tmp_path / "nowhere")):
        with pytest.raises(UserError) as caught:
            count_parameters(load([f"model.path={path}"]).recipe.model, 2048)
        assert len(caught.value.lines) == 1 and "cannot be loaded" in caught.value.lines[0]
