"""Token refinement against an independent formula."""

import jax
import numpy as np
import pytest
import tiny

from vitjax import api
from vitjax.types import Edits


def test_refinement_equals_an_independent_formula():
    model = tiny.make(tiny.CONFIGS["refinement"])
    images, cfg = tiny.images(model.config), model.config
    logits = api.refinement_logits(model, images)
    assert logits.shape == (cfg.depth - 1, 3, 7)
    _, trace = api.forward(model, images, capture=("residual",))
    tree = jax.tree.map(lambda x: np.asarray(x, np.float64), model.params)
    norm, head = tree["Transformer"]["encoder_norm"], tree["head"]

    def layer_norm(x):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.epsilon)
        return x * norm["scale"] + norm["bias"]

    for block in range(cfg.depth - 1):
        p = jax.tree.map(lambda leaf, b=block: leaf[b], tree["refinement"])
        x = layer_norm(np.asarray(trace.residual[block], np.float64))
        grid = x[:, 1:].reshape(3, *cfg.grid, cfg.dim)

        def layer(grid, p=p):
            rows, columns = cfg.grid
            wide = np.pad(grid, ((0, 0), (1, 1), (1, 1), (0, 0)))
            out = sum(
                wide[:, r : r + rows, c : c + columns] @ p["conv"]["kernel"][r, c]
                for r in range(3)
                for c in range(3)
            )
            out = (out - p["norm"]["mean"]) / np.sqrt(p["norm"]["var"] + 1e-5)
            return out * p["norm"]["scale"] + p["norm"]["bias"]

        y = np.maximum(layer(np.maximum(layer(grid), 0)) + grid, 0).mean((1, 2))
        y = y + x[:, 0] @ p["token"]["kernel"] + p["token"]["bias"]
        expected = y @ head["kernel"] + head["bias"]
        np.testing.assert_allclose(logits[block], expected, atol=2e-4, rtol=1e-4)


def test_refinement_needs_its_modules_and_every_patch():
    plain, model = (tiny.make(tiny.CONFIGS[n]) for n in ("plain", "refinement"))
    with pytest.raises(ValueError, match="vit_b16_refinement_heads"):
        api.refinement_logits(plain, tiny.images(plain.config))
    edits = Edits(keep=np.ones((3, 16), bool))
    with pytest.raises(ValueError, match="every patch"):
        api.refinement_logits(model, tiny.images(model.config), edits=edits)
