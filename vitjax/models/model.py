"""Models: a pytree of parameters with a static architecture, to pass through jit."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float

from vitjax.checks import check_images
from vitjax.models.vit import VisionTransformer
from vitjax.types import ArrayLike, ClassSpace, Config, pytree, static


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Provenance:
    """The row of the model table, and the file or folder of the weights.

    `position_resize` is how the library that wrote the file resizes position
    embeddings, `weights` the set of weights that was taken out of several, `ignored`
    the file's keys that were left out, with the reason. `sources` says of the
    "preprocess", "classes", "epsilon" and "gelu" in force where they came from. Any two
    compare equal, so that models of one architecture share their compiled functions.
    """

    name: str = ""
    path: str = ""
    sha256: str = ""
    position_resize: str = "bicubic"
    weights: str = ""
    ignored: tuple[str, ...] = ()
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Provenance)

    def __hash__(self) -> int:
        return hash(Provenance)


@pytree
class Model:
    """A Vision Transformer with its weights; a pytree of its parameters.

    Pass it as an argument through `jit`; do not close over it, or its weights become
    constants of the program.

    Args:
        params: parameters, in the layout of `vitjax.models.vit.VisionTransformer`.
        config: the architecture.
        classes: class names, in the order of the logits.
        class_ids: one id per class: a WordNet id for ImageNet, else the name.
        preprocess: image -> float32 [height width 3], or None where it is not known.
        provenance: its name and where its weights came from.
    """

    params: Any
    config: Config = static()
    classes: tuple[str, ...] = static(default=())
    class_ids: tuple[str, ...] = static(default=())
    preprocess: Any = static(default=None)
    provenance: Provenance = static(default=Provenance())

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def module(self) -> VisionTransformer:
        """The Linen module; `module.apply({"params": params}, images)` works."""
        return VisionTransformer(self.config, self.num_classes)

    @property
    def class_space(self) -> ClassSpace:
        """What turns states into class logits."""
        return self.apply(method="class_space")

    @property
    def block_params(self) -> Any:
        """Parameters of the encoder blocks, stacked on a leading `layer` axis."""
        return self.params["Transformer"]["encoderblock"]

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype the model computes in."""
        return jax.tree.leaves(self.params)[0].dtype

    def astype(self, dtype: Any) -> "Model":
        """The same model with parameters, and so its computation, in another dtype."""
        params = jax.tree.map(lambda p: jnp.asarray(p, dtype), self.params)
        return self.replace(params=params)

    def replace(self, **fields: Any) -> "Model":
        """The same model with other fields."""
        return dataclasses.replace(self, **fields)  # pyright: ignore

    def apply(self, *args: Any, method: str) -> Any:
        """Call a method of the Linen module on the parameters."""
        return self.module.apply({"params": self.params}, *args, method=method)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(height, width, channels) of an image."""
        return (*self.config.shape, self.config.channels)

    def check_images(
        self, images: Float[ArrayLike, "batch height width channel"]
    ) -> Float[Array, "batch height width channel"]:
        """The images in the model's dtype; ValueError if their shape is not its own."""
        check_images("images", images, self.image_shape)
        return jnp.asarray(images, self.dtype)

    def __repr__(self) -> str:
        config, count = self.config, len(self.classes)
        leaves = jax.tree.leaves(self.params)
        sizes = [math.prod(getattr(leaf, "shape", ())) for leaf in leaves]
        dtypes = dict.fromkeys(str(getattr(leaf, "dtype", "")) for leaf in leaves)
        prefix = "[CLS] + " * config.class_token
        prefix += f"{config.registers} registers + " * (config.registers > 0)
        names = [name.split(",")[0] for name in self.classes]
        if count > 4:
            names = [*names[:3], "...", names[-1]]
        return (
            f"Model {self.provenance.name or 'without a name'}: "
            f"{sum(sizes):,} parameters, {', '.join(dtypes)}\n"
            f"  images   {' x '.join(map(str, self.image_shape))}, "
            f"{prefix}{config.patches} patches of {config.patch_size}\n"
            f"  blocks   {config.depth}, dim {config.dim}, {config.heads} heads, "
            f"MLP {config.mlp_dim}\n"
            f"  classes  {count}: {', '.join(names)}\n"
            f"  weights  {self.provenance.path or 'not from a file'}"
        )


def memory_values(model: Model) -> dict[str, Float[Array, "layer memory dim"]]:
    """Value vectors of both key-value memory systems (Vilas et al. 2023, section 6).

    Args:
        model: the model.

    Returns:
        "attention": rows of the output projection, head-major, `head * key` of them;
        "mlp": rows of the second dense layer, `mlp_dim` of them. Biases are left out.
        Times LayerScale, where the model has it: with their coefficients they add up to
        the update, less what biases add. In a residual-post-norm block they are raw, as
        in the published code: they add up to what its norm then takes.

    Example:
        >>> values = vitjax.memory_values(model)["mlp"]  # [layer memory dim]
        >>> vitjax.project(model.class_space, values).argmax(-1)  # the class of each
    """
    block = model.block_params
    out = block["MultiHeadDotProductAttention_0"]["out"]["kernel"]
    depth, heads, width, dim = out.shape
    values = {
        "attention": jnp.reshape(out, (depth, heads * width, dim)),
        "mlp": jnp.asarray(block["MlpBlock_0"]["Dense_1"]["kernel"]),
    }
    if model.config.layer_scale and model.config.norm == "pre":
        for index, system in enumerate(values):
            gamma = block[f"LayerScale_{index}"]["gamma"]
            values[system] = values[system] * gamma[:, None]
    return values


def initialize(
    config: Config, *, classes, class_ids=None, seed: int = 0, **fields: Any
) -> Model:
    """A model with random weights, a pure function of the seed."""
    params = initializer(config, len(classes))(jax.random.key(seed))
    ids = classes if class_ids is None else class_ids
    return Model(params=params, config=config, classes=classes, class_ids=ids, **fields)


@functools.lru_cache(maxsize=32)
def initializer(config: Config, classes: int) -> Any:
    """key -> params, compiled once for an architecture."""
    module = VisionTransformer(config, classes)

    def initialize_params(key):
        return module.init(key, jnp.zeros((1, *config.shape, config.channels)))[
            "params"
        ]

    return jax.jit(initialize_params)


@functools.lru_cache(maxsize=64)
def parameter_shapes(config: Config, classes: int) -> dict[str, tuple[int, ...]]:
    """Path to shape of every parameter of a model."""
    tree = jax.eval_shape(initializer(config, classes), jax.random.key(0))
    return {path: leaf.shape for path, leaf in flatten(tree).items()}


flatten: Any = functools.partial(traverse_util.flatten_dict, sep="/")
unflatten: Any = functools.partial(traverse_util.unflatten_dict, sep="/")
"""A nested dict as {path joined by /: leaf}, and back."""
