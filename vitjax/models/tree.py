"""The parameter tree as flat paths."""

from typing import Any

import jax
import numpy as np

from vitjax.models.vit import VisionTransformer
from vitjax.types import Config


def parameter_shapes(config: Config, classes: int) -> dict[str, tuple[int, ...]]:
    """Path to shape of every parameter of a model."""
    module = VisionTransformer(config, classes)
    images = jax.ShapeDtypeStruct((1, *config.shape, 3), np.float32)
    tree = jax.eval_shape(module.init, jax.random.key(0), images)["params"]
    return {path: leaf.shape for path, leaf in flatten(tree).items()}


def flatten(tree: Any) -> dict[str, Any]:
    """A nested dict as {path joined by /: leaf}."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {"/".join(entry.key for entry in path): leaf for path, leaf in leaves}


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
