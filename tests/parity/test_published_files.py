"""The small published-code models in every file that PyTorch wrote of them."""

import jax
import numpy as np
import published
import pytest

import vitjax

FILES = {
    "plain": ("weights_nested_state_dict.pth",),
    "miil": ("weights_nested_state_dict.pth",),
    "gap": ("weights_nested_state_dict.pth",),
    "deit": ("weights_nested_model.pth", "weights_nested_state_dict_trm.pth"),
}


@pytest.mark.parametrize(
    ("name", "file"), [(name, file) for name in FILES for file in FILES[name]]
)
def test_torch_files_hold_the_same_weights(name, file, shared, published_model, torch):
    path = published.folder(shared, name) / file
    ours = vitjax.load(published.CONFIGS[name], checkpoint=path, classes=20)
    expected = published_model(name).params
    assert jax.tree.all(jax.tree.map(np.array_equal, ours.params, expected))
