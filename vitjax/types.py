"""Glossary of axes and words, and the structs that all rooms share.

Axes, in every annotation of the package:

- `layer`: encoder block, 0-based.
- `batch`: image.
- `token`: prefix tokens ([CLS], then registers) first, then patches in row-major order.
- `patch`: image tokens only.
- `dim`: residual stream.
- `head`, `key`: attention heads and the width of one head.
- `hidden`: MLP neurons.
- `memory`: value vectors of one layer.
- `class`: classes, in the order of `model.classes`.

`query` and `key_token` are token axes of an attention matrix where both appear.

Words, one for each concept:

- residual stream: what blocks read and add to. State: a vector of it, or of an update.
- class logits: a state in class space, `E.LN(x) + b`; logits: those of the model.
- attention weights: after the softmax. Attention scores: before it.
- [CLS], class token: the first prefix token. Register: any other prefix token.
- on_object, patch_label: whether a patch lies on the labeled object: 1 object, 0
  context, -1 neither.
- image: an element of a data set, or its pixels. Example: what a probe is fitted on.
- label: the true class. Prediction: the class of the largest logit. Target: the class
  that a map explains.
- mask: where the object is in an image.
- map: one number per patch. Relevancy: the map of Vilas et al. 2023, section 7.
- memory: a value vector of a layer; a token calls it with a coefficient.
- vilas2023: as the published code of Vilas et al. 2023 defines it.
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    Literal,
    TypeVar,
    dataclass_transform,
    get_args,
    get_origin,
)

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

if TYPE_CHECKING or not hasattr(typing, "GENERATING_DOCUMENTATION"):
    ArrayLike = jax.Array | np.ndarray
    """Type of array arguments: numpy arrays, JAX arrays, and tracers of the latter."""
else:  # a name is easier to read
    from jaxtyping import ArrayLike

Convention = Literal["paper", "vilas2023_code"]
"""Whose definition: that of the paper's text, or of its published code."""
CONVENTIONS = get_args(Convention)

if TYPE_CHECKING:
    from typing import Never as Lists
else:
    Lists = list | tuple
"""What a user may give for an array of `Edits`, which makes one of it."""

Struct = TypeVar("Struct")


def static(**kwargs: Any) -> Any:
    """A field of a `pytree` that is part of the tree's structure, not of its leaves."""
    return dataclasses.field(metadata={"static": True}, **kwargs)


@dataclass_transform(
    kw_only_default=True, frozen_default=True, field_specifiers=(static,)
)
def pytree(cls: type[Struct]) -> type[Struct]:
    """Make a frozen, keyword-only dataclass that JAX maps over.

    Unflattening bypasses `__init__`: transformations put masks, `None`s and specs
    where arrays were, and only what a user constructs is to be type-checked.
    """
    own = {"frozen": True, "kw_only": True, "eq": False, "repr": False}
    cls = dataclasses.dataclass(**own)(cls)  # pyright: ignore
    if cls.__repr__ is object.__repr__:
        cls.__repr__ = short_repr  # pyright: ignore[reportAttributeAccessIssue]
    fields = dataclasses.fields(cls)  # pyright: ignore[reportArgumentType]
    data = tuple(f.name for f in fields if not f.metadata.get("static"))
    meta = tuple(f.name for f in fields if f.metadata.get("static"))

    def flatten_with_keys(node):
        children = [(jax.tree_util.GetAttrKey(n), getattr(node, n)) for n in data]
        return children, tuple(getattr(node, n) for n in meta)

    def unflatten(aux, children):
        node = object.__new__(cls)
        for name, value in (*zip(data, children), *zip(meta, aux)):
            object.__setattr__(node, name, value)
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)
    return cls


def short_repr(struct: Any) -> str:
    """The fields that are not None; of arrays, dtype and shape."""

    def describe(value: Any, axes: tuple[str, ...]) -> str:
        shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
        if shape is None or dtype is None:
            return repr(value)
        sizes = [str(size) for size in shape]
        if len(axes) == len(sizes):
            sizes = [f"{axis} {size}" for axis, size in zip(axes, sizes)]
        return f"{dtype}[{', '.join(sizes)}]"

    axes = FIELD_AXES if isinstance(struct, Trace) else {}
    parts = [
        f"{name}={describe(value, axes.get(name, ()))}"
        for name, value in vars(struct).items()
        if value is not None
    ]
    name, line = type(struct).__name__, ", ".join(parts)
    if len(line) > 72:
        line = "".join(f"\n    {part}," for part in parts) + "\n"
    return f"{name}({line})"


@dataclasses.dataclass(frozen=True)
class Config:
    """The architecture of one Vision Transformer; two equal configs are one program.

    Args:
        image_size: input side in pixels, or (height, width).
        patch_size: side of a square patch in pixels; divides the image size.
        dim: width of the residual stream.
        depth: number of encoder blocks.
        heads: attention heads per block; divides `dim`.
        mlp_dim: neurons of each block's MLP.
        class_token: whether there is a [CLS].
        registers: register tokens, between [CLS] and the patches.
        norm: where LayerNorm stands. "pre": `x + f(LN(x))`. "residual_post":
            `x + LN(f(x))`.
        qkv_bias: whether query, key and value projections have a bias.
        layer_scale: whether a learned per-channel factor multiplies each update.
        gelu: "erf" (exact; timm, the paper's numbers), "tanh" (the original code,
            SigLIP) or "quick" (`x sigmoid(1.702 x)`, OpenAI's CLIP).
        epsilon: added to the variance in every LayerNorm.
        refinement: whether every block but the last has a token-refinement module
            (Naseer et al. 2022), a head of its own: `vitjax.refinement_logits`.
        channels: of the input images.
        qk_norm: whether LayerNorm stands before the product of queries and keys, over
            the width of a head.
        mlp: "gelu", two dense layers; "swiglu", `W3 (silu(W1 x) * W2 x)`.
        distilled: whether the first register is DeiT's distillation token, with a head
            of its own: the model's logits are the mean of both heads'. The class space
            is that of [CLS].
        embed_norm: whether LayerNorm stands before block 0 (CLIP).
        patch_bias: whether the patch embedding has a bias.
        pool: what the head reads. "cls": [CLS]. "mean": the mean of the patches. "map":
            SigLIP's attention pooling over all tokens. "cls_mean": [CLS] by one class
            embedding and the mean of the patches by another (DINOv2). None: "cls" with
            a class token, else "mean"; see `pooling`.
        pool_norm: whether the final norm stands "after" or "before" a mean; "map" and
            "cls_mean" pool normalized tokens.
        projection: width of the space in which images and classes are compared, where
            a matrix leads to it (CLIP); None for `dim`.
        head: "linear", `E f + b`; "cosine", `temperature cos(f, class) + b` (CLIP and
            SigLIP).
        sigmoid: whether probabilities are sigmoids of the logits, which share a learned
            bias (SigLIP); otherwise their softmax.
        head_blocks: of how many last blocks "cls_mean" reads [CLS], normalized by the
            final norm (DINOv2's heads of four layers).
        truncate: whether pixels at the right and the lower edge that fill no patch are
            dropped, as a convolution does; otherwise the patch size must divide.

    Raises:
        ValueError: a size does not divide, is not positive, or an option is unknown.
    """

    image_size: int | tuple[int, int]
    patch_size: int
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    class_token: bool = True
    registers: int = 0
    norm: Literal["pre", "residual_post"] = "pre"
    qkv_bias: bool = True
    layer_scale: bool = False
    gelu: Literal["erf", "tanh", "quick"] = "erf"
    epsilon: float = 1e-6
    refinement: bool = False
    channels: int = 3
    qk_norm: bool = False
    mlp: Literal["gelu", "swiglu"] = "gelu"
    distilled: bool = False
    embed_norm: bool = False
    patch_bias: bool = True
    pool: Literal[None, "cls", "mean", "map", "cls_mean"] = None
    pool_norm: Literal["after", "before"] = "after"
    projection: int | None = None
    head: Literal["linear", "cosine"] = "linear"
    sigmoid: bool = False
    head_blocks: int = 1
    truncate: bool = False

    def __post_init__(self):
        if not isinstance(self.image_size, int):  # also a list, which has no hash
            height, width = self.image_size
            object.__setattr__(self, "image_size", (int(height), int(width)))
        if self.pool == ("cls" if self.class_token else "mean"):
            object.__setattr__(self, "pool", None)  # equal configs are one program
        sizes = (self.patch_size, self.dim, self.depth, self.heads, self.mlp_dim)
        sizes += (self.embed_dim, self.head_blocks, *self.grid)
        if min(*sizes, *self.shape, self.channels) < 1 or self.registers < 0:
            raise ValueError(f"Every size of a Config must be positive: {self}")
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"Config.epsilon={self.epsilon!r} is not in [0, 1].")
        if not self.truncate and any(side % self.patch_size for side in self.shape):
            raise ValueError(
                f"patch_size {self.patch_size} does not divide image_size "
                f"{self.image_size}; choose an image size that is a multiple of it, "
                "or truncate=True to drop the pixels at the edge."
            )
        if self.dim % self.heads:
            raise ValueError(f"heads {self.heads} does not divide dim {self.dim}.")
        if self.refinement and (self.pooling != "cls" or self.depth < 2):
            raise ValueError(
                "Token refinement reads [CLS] of every block but the last: it needs "
                f"pool='cls' and a depth of at least 2; got {self}."
            )
        if self.distilled and not (self.pooling == "cls" and self.registers):
            raise ValueError(
                "distilled=True reads [CLS] and the first register: it needs "
                f"pool='cls' and a register; got {self}."
            )
        if self.pooling in ("cls", "cls_mean") and not self.class_token:
            raise ValueError(
                f"pool={self.pooling!r} reads [CLS]: it needs a class token."
            )
        if self.pooling == "cls_mean" and (self.head == "cosine" or self.projection):
            raise ValueError("pool='cls_mean' has a linear head without a projection.")
        if (
            not 1
            <= self.head_blocks
            <= (self.depth if self.pooling == "cls_mean" else 1)
        ):
            raise ValueError(
                f"Config.head_blocks={self.head_blocks}: only pool='cls_mean' reads "
                "more blocks than the last, and at most all."
            )
        for field in dataclasses.fields(self):
            value, known = getattr(self, field.name), get_args(field.type)
            if get_origin(field.type) is Literal and value not in known:
                raise ValueError(f"Config.{field.name} is {value!r}; known: {known}.")

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "Config":
        """The inverse of `dataclasses.asdict`, also after JSON made lists of tuples."""
        kinds = {field.name: field.type for field in dataclasses.fields(cls)}
        if unknown := set(fields) - set(kinds):
            raise ValueError(
                f"An architecture with unknown fields {sorted(unknown)}; another "
                f"version of vitjax wrote it. Known: {sorted(kinds)}."
            )
        for name, value in fields.items():
            kind = kinds[name]
            if kind in (int, bool) and type(value) is not kind:
                raise ValueError(f"Config.{name}={value!r} is no {kind.__name__}.")
        size = fields["image_size"]
        size = size if isinstance(size, int) else (size[0], size[1])
        return cls(**{**fields, "image_size": size})

    @property
    def shape(self) -> tuple[int, int]:
        """Input (height, width) in pixels."""
        size = self.image_size
        return (size, size) if isinstance(size, int) else size

    @property
    def grid(self) -> tuple[int, int]:
        """Patches as (rows, columns)."""
        height, width = self.shape
        return height // self.patch_size, width // self.patch_size

    @property
    def patches(self) -> int:
        """Number of image tokens."""
        rows, columns = self.grid
        return rows * columns

    @property
    def prefix(self) -> int:
        """Number of tokens before the first patch: [CLS] and registers."""
        return int(self.class_token) + self.registers

    @property
    def tokens(self) -> int:
        """Number of all tokens."""
        return self.prefix + self.patches

    @property
    def pooling(self) -> str:
        """What the head reads: `pool`, or "cls" with a class token, else "mean"."""
        return self.pool or ("cls" if self.class_token else "mean")

    @property
    def embed_dim(self) -> int:
        """Width of the space in which images and classes are compared."""
        return self.dim if self.projection is None else self.projection

    @property
    def normalizes_first(self) -> bool:
        """Whether the final norm is applied to tokens, before they are pooled."""
        return self.pooling in ("map", "cls_mean") or self.pool_norm == "before"

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.dim // self.heads


@pytree
class Trace:
    """Intermediates of one forward pass; a field that is not captured is None.

    Args:
        embedding: the residual stream entering block 0.
        residual: the residual stream after each block.
        attention_update: what the attention sub-layer adds to it: after its
            output projection, bias and LayerScale, and after the norm of a
            residual-post-norm block.
        mlp_update: what the MLP adds, likewise.
        queries, keys: of every head, as projected; scores are their products over the
            square root of the head's width.
        attention_scores: before `Edits.attend` and the softmax.
        attention_weights: after the softmax and after edits.
        values: value vectors of every head.
        mixed_values: values mixed by the attention weights, the input of the output
            projection.
        mlp_preactivation: before the GELU, or before the SiLU of a SwiGLU.
        mlp_hidden: what the MLP's last layer reads.
    """

    embedding: Float[ArrayLike, "*batch token dim"] | None = None
    residual: Float[ArrayLike, "*layer batch token dim"] | None = None
    attention_update: Float[ArrayLike, "*layer batch token dim"] | None = None
    mlp_update: Float[ArrayLike, "*layer batch token dim"] | None = None
    queries: Float[ArrayLike, "*layer batch token head key"] | None = None
    keys: Float[ArrayLike, "*layer batch token head key"] | None = None
    attention_scores: Float[ArrayLike, "*layer batch head token token"] | None = None
    attention_weights: Float[ArrayLike, "*layer batch head token token"] | None = None
    values: Float[ArrayLike, "*layer batch token head key"] | None = None
    mixed_values: Float[ArrayLike, "*layer batch token head key"] | None = None
    mlp_preactivation: Float[ArrayLike, "*layer batch token hidden"] | None = None
    mlp_hidden: Float[ArrayLike, "*layer batch token hidden"] | None = None


TRACE_FIELDS = tuple(field.name for field in dataclasses.fields(Trace))  # pyright: ignore
"""Every name that `capture` may hold."""

BLOCK_FIELDS = TRACE_FIELDS[1:]
"""Those that exist once per block."""


FIELD_AXES: dict[str, tuple[str, ...]] = {
    "embedding": ("batch", "token", "dim"),
    **dict.fromkeys(
        ("residual", "attention_update", "mlp_update"),
        ("layer", "batch", "token", "dim"),
    ),
    **dict.fromkeys(
        ("queries", "keys", "values", "mixed_values"),
        ("layer", "batch", "token", "head", "key"),
    ),
    **dict.fromkeys(
        ("attention_scores", "attention_weights"),
        ("layer", "batch", "head", "query", "key_token"),
    ),
    **dict.fromkeys(
        ("mlp_preactivation", "mlp_hidden"), ("layer", "batch", "token", "hidden")
    ),
}
"""Axes of every field of `Trace`."""

TOKEN_AXES = ("token", "query", "key_token")
"""Axes of a field whose entries are tokens."""


@pytree
class TapEdit:
    """An edit of one field of `Trace`: `x -> where(where, value, scale * x + add)`.

    Arrays have the axes of the field, `[layer batch ...]`, of which any may be 1 and
    then holds for all; a number holds everywhere. Token axes are those of the full
    sequence, also together with `Edits.select`.

    Args:
        scale: multiplies the field; None for 1.
        add: is added to it; None for 0. Of zeros, its gradient is the field's.
        where: the entries that `value` replaces; None for all.
        value: what replaces them; None replaces nothing.

    Raises:
        ValueError: `where` is given without a value.

    Example:
        >>> half = vitjax.TapEdit(scale=0.5)
        >>> vitjax.forward(model, images, edits=vitjax.Edits(taps={"mlp_update": half}))
    """

    scale: Shaped[ArrayLike, "..."] | Lists | float | None = None
    add: Shaped[ArrayLike, "..."] | Lists | float | None = None
    where: Shaped[ArrayLike, "..."] | Lists | bool | None = None
    value: Shaped[ArrayLike, "..."] | Lists | float | None = None

    def __post_init__(self):
        lists_to_arrays(self)
        if self.where is not None and self.value is None:
            raise ValueError(
                "TapEdit(where=...) needs a value for these entries; value=0.0 sets "
                "them to zero."
            )

    def __call__(self, x: Array) -> Array:
        """The edited field; entries are cast to its dtype."""

        def fit(values, dtype):
            values = jnp.asarray(values, dtype)
            return values if values.ndim else values.reshape((1,) * x.ndim)

        scale, add, where, value = self.scale, self.add, self.where, self.value
        edited = x if scale is None else x * fit(scale, x.dtype)
        edited = edited if add is None else edited + fit(add, x.dtype)
        if value is None:
            return edited
        where = True if where is None else where
        return jnp.where(fit(where, bool), fit(value, x.dtype), edited)

    def then(self, after: "TapEdit") -> "TapEdit":
        """The one edit that does what this one and then another does."""

        def moved(x):  # after.scale * x + after.add
            x = x if after.scale is None else jnp.multiply(x, after.scale)
            return x if after.add is None else jnp.add(x, after.add)

        scale = _both(self.scale, after.scale, jnp.multiply)
        add = after.add if self.add is None else moved(self.add)
        where, value = self.where, self.value
        if value is None:
            where, value = after.where, after.value
        elif after.value is None:
            value = moved(value)
        elif after.where is None:
            where, value = None, after.value
        else:
            value = jnp.where(after.where, after.value, moved(value))
            where = None if where is None else jnp.logical_or(where, after.where)
        return TapEdit(scale=scale, add=add, where=where, value=value)


def lists_to_arrays(edit: Any) -> None:
    """Make arrays of the lists that a user gave."""
    for name, value in vars(edit).items():
        if isinstance(value, list | tuple):
            object.__setattr__(edit, name, np.asarray(value))


LINKS = "... #layer #batch #head #query #key_token"
"""Axes of a mask on attention links; leading ones are of Edits stacked for vmap."""


@pytree
class Edits:
    """Interventions on a forward pass, as data; None leaves that part untouched.

    Any axis of `attend` and `scale` may be 1 and then holds for all. Token axes are
    those of the full sequence, also together with `select`. `vitjax.ablate`,
    `vitjax.patch` and `vitjax.steer` make `taps`.

    Args:
        attend: in [0, 1], the logarithm is added BEFORE the softmax: 0 cuts the link
            and the rest of the row sums to one.
        scale: multiplies the attention weights AFTER the softmax; nothing is
            renormalized.
        keep: False removes a patch from the sequence by masking. Prefix tokens always
            stay. States of removed tokens are finite and meaningless.
        select: only these patches run, in this order: a sequence really shorter,
            chosen after the position embedding. A number that is no patch is an error,
            or, inside a `jit` of yours, makes the logits of its image NaN.
        taps: field of `Trace` -> its edit, applied where the field is captured, so that
            what is captured is the edited one. Attention scores are edited before
            `attend`, the weights after `scale`.

    Raises:
        ValueError: a negative number in `select`.
    """

    attend: Float[ArrayLike, LINKS] | Lists | None = None
    scale: Float[ArrayLike, LINKS] | Lists | None = None
    keep: Bool[ArrayLike, "... #batch patch"] | Lists | None = None
    select: Int[ArrayLike, "... #batch kept"] | Lists | None = None
    taps: dict[str, TapEdit] | None = None

    def __post_init__(self):
        lists_to_arrays(self)
        select = self.select
        if select is not None and np.ndim(select) < 2:
            raise ValueError(
                f"Edits.select={select!r} must be an array [batch kept] of patch "
                "numbers; batch may be 1."
            )
        if isinstance(select, np.ndarray) and (select < 0).any():
            raise ValueError(
                f"Edits.select holds {select.min()}; patch numbers count from 0."
            )

    def __and__(self, other: "Edits") -> "Edits":
        """Both interventions: masks multiply, keeps are "and"; it commutes, but for
        edits of one field by `taps`, of which the left one comes first.

        Raises:
            ValueError: both sides select tokens.
        """
        if self.select is not None and other.select is not None:
            raise ValueError(
                "Both Edits select tokens; make one selection of the two index arrays."
            )
        first, second = self.taps or {}, other.taps or {}
        both = {
            field: first[field].then(second[field])
            for field in first
            if field in second
        }
        return type(self)(
            attend=_both(self.attend, other.attend, jnp.multiply),
            scale=_both(self.scale, other.scale, jnp.multiply),
            keep=_both(self.keep, other.keep, jnp.logical_and),
            select=other.select if self.select is None else self.select,
            taps={**first, **second, **both} or None,
        )


def _both(left, right, combine):
    if left is None or right is None:
        return right if left is None else left
    return combine(left, right)


def layer_norm(
    x: Float[Array, "*any dim"],
    scale: Float[ArrayLike, " dim"],
    bias: Float[ArrayLike, " dim"],
    *,
    epsilon: float,
    factor: Callable[[Array], Array] = lambda factor: factor,
) -> Float[Array, "*any dim"]:
    """Layer normalization in float32 at least, returned in the dtype of x.

    The variance is the two-pass one: the one-pass form that Flax prefers loses digits
    where a state's mean is large against its spread. `factor` is applied to 1 / sigma
    before it multiplies; LRP holds it constant.
    """
    y = to_float32(x)
    y = y - y.mean(-1, keepdims=True)
    y = y * factor(jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + epsilon))
    return (y * along_last(scale, y) + along_last(bias, y)).astype(x.dtype)


def to_float32(x: Array) -> Array:
    """x in float32 at least."""
    return x.astype(np.promote_types(x.dtype, jnp.float32))


def along_last(x: ArrayLike, like: Array) -> Array:
    """x along the last axes of another array, in its dtype."""
    x = jnp.asarray(x, like.dtype)
    return x.reshape((1,) * (like.ndim - x.ndim) + x.shape)


def gelu(x: Array, kind: str) -> Array:
    """x times the probability of less: exact, by tanh, or by sigmoid(1.702 x)."""
    if kind == "quick":
        return x * jax.nn.sigmoid(1.702 * x)
    return jax.nn.gelu(x, approximate=kind == "tanh")


@pytree
class ClassSpace:
    """What turns a state x into class logits, `E.LN(x) + b`.

    A model that compares embeddings (CLIP, SigLIP) goes on from z = LN(x) to the
    state's embedding f = P.z + s, with attention pooling to f + MLP(LN(f)), and to
    `t cos(f, T) + b`, or to `T.f + b` where there is no temperature. E is then T.P,
    which ranks classes as the logits do but for the MLP.

    Args:
        embedding: E, one row per class. Of [CLS], where patches have their own.
        bias: b.
        norm_scale, norm_shift: affine part of the final LayerNorm.
        epsilon: its variance offset.
        class_embedding: T, one row per class; None where E is all that there is.
        projection, shift: P transposed and s; None for the identity and 0.
        mlp: parameters of the norm and of both dense layers of the MLP, or None.
        temperature: t, or None.
        patch_embedding: E of patches, whose class logits have no b: with those of [CLS]
            their mean makes the model's. None where all tokens share one.
        gelu: of the MLP.
        sigmoid: whether probabilities are sigmoids of the logits, not their softmax.
    """

    embedding: Float[ArrayLike, "class dim"]
    bias: Float[ArrayLike, " class"]
    norm_scale: Float[ArrayLike, " dim"]
    norm_shift: Float[ArrayLike, " dim"]
    epsilon: float = static()
    class_embedding: Float[ArrayLike, "class embed"] | None = None
    projection: Float[ArrayLike, "dim embed"] | None = None
    shift: Float[ArrayLike, " embed"] | None = None
    mlp: Any = None
    temperature: Float[ArrayLike, ""] | None = None
    patch_embedding: Float[ArrayLike, "class dim"] | None = None
    gelu: str = static(default="erf")
    sigmoid: bool = static(default=False)

    def logits(
        self, states: Float[ArrayLike, "*any dim"]
    ) -> Float[Array, "*any class"]:
        """Class logits of states; see `vitjax.project`."""
        return self.read(self.normalize(states))

    def normalize(self, states: Float[ArrayLike, "*any dim"]) -> Float[Array, "..."]:
        """LN(x), in float32 at least."""
        x = to_float32(jnp.asarray(states))
        return layer_norm(x, self.norm_scale, self.norm_shift, epsilon=self.epsilon)

    def read(self, z: Float[Array, "*any dim"]) -> Float[Array, "*any class"]:
        """Class logits of normalized states."""
        return self.compare(self.embed(z))

    def embed(self, z: Float[Array, "*any dim"]) -> Float[Array, "*any embed"]:
        """f of normalized states, before the MLP."""
        if self.projection is None:
            return z
        return affine(z, jnp.asarray(self.projection).T, self.shift)

    def compare(self, f: Float[Array, "*any embed"]) -> Float[Array, "*any class"]:
        """Class logits of embeddings."""
        if self.class_embedding is None:
            return affine(f, self.embedding, self.bias)
        f = self.finish(f)
        if self.temperature is not None:
            f = f * along_last(self.temperature, f)
        return affine(f, self.class_embedding, self.bias)

    def finish(self, f: Float[Array, "*any embed"]) -> Float[Array, "*any embed"]:
        """Embeddings after the MLP, of unit length where the head is a cosine."""
        if self.mlp is not None:
            f = f + self.transform(f)
        return f if self.temperature is None else unit(f)

    def transform(self, f: Float[Array, "*any embed"]) -> Float[Array, "*any embed"]:
        """What the MLP of attention pooling adds to an embedding."""
        return feed_forward(f, self.mlp, self.gelu, self.epsilon)

    def probabilities(
        self, logits: Float[ArrayLike, "*any class"]
    ) -> Float[Array, "*any class"]:
        """Probabilities of class logits: of a sigmoid, each class by itself."""
        logits = jnp.asarray(logits)
        return jax.nn.sigmoid(logits) if self.sigmoid else jax.nn.softmax(logits)

    @property
    def of_patches(self) -> "ClassSpace":
        """The class space of patches."""
        if self.patch_embedding is None:
            return self
        fields: Any = dict(
            embedding=self.patch_embedding,
            bias=jnp.zeros_like(jnp.asarray(self.bias)),
            patch_embedding=None,
        )
        return dataclasses.replace(self, **fields)  # pyright: ignore


def affine(x: Array, embedding: ArrayLike | None, bias) -> Float[Array, "..."]:
    """`E.x + b`, added up and returned in float32 at least.

    In half precision, rounding the logits would merge logits that differ by less than
    0.3 %; the products cost the same.
    """
    kernel = jnp.asarray(embedding).T
    dtype = np.promote_types(kernel.dtype, jnp.float32)
    y = jnp.matmul(x.astype(kernel.dtype), kernel, preferred_element_type=dtype)
    return y if bias is None else y + along_last(bias, y)


def feed_forward(x: Array, params: Any, kind: str, epsilon: float) -> Array:
    """MLP(LN(x)), two dense layers with a GELU between."""
    norm, first, second = (params[n] for n in ("LayerNorm_0", "Dense_0", "Dense_1"))
    x = layer_norm(x, norm["scale"], norm["bias"], epsilon=epsilon)
    x = gelu(affine(x, jnp.asarray(first["kernel"]).T, first["bias"]), kind)
    return affine(x, jnp.asarray(second["kernel"]).T, second["bias"])


def unit(x: Array) -> Array:
    """x over its length; 0 where that is 0."""
    return x * inverse_length(x)


def inverse_length(x: Array) -> Array:
    """1 / length along the last axis; 0, also its derivative, where that is 0."""
    square = jnp.square(x).sum(-1, keepdims=True)
    exists = square != 0
    return jnp.where(exists, jax.lax.rsqrt(jnp.where(exists, square, 1)), 0)


@pytree
class Batch:
    """Images as a model takes them; rows of padding have `valid` False.

    Args:
        images: preprocessed pixels.
        label: true class, -1 where unknown.
        valid: False for padding and for images that could not be read.
        index: position in the data set.
        patch_label: per patch 1 = object, 0 = context, -1 = neither; None where the
            data set has no masks.
    """

    images: Float[ArrayLike, "batch height width channel"]
    label: Int[ArrayLike, " batch"]
    valid: Bool[ArrayLike, " batch"]
    index: Int[ArrayLike, " batch"]
    patch_label: Int[ArrayLike, "batch patch"] | None = None

    @property
    def token_class(self) -> ArrayLike | None:
        """The former name of `patch_label`."""
        return self.patch_label
