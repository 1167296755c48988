"""Training of the embedded model `textured_digits`.

    python checkpoints/train_textured_digits.py --out DIR

With the defaults it trains the shipped checkpoint: 3,000 steps of 64 fresh images,
about half an hour on two free CPU cores; then top-1 0.960, 0.974 and 0.985 on 5,000
unseen images at correlation 0, 0.5 and 1. Deterministic on one machine from the seed;
killed at any moment and started again it resumes from its last state and ends with the
same weights.

The recipe: Muon on the matrices of the blocks (the update is the nearest
semi-orthogonal matrix to the momentum), Adam on everything else; warm-up, then cosine
to zero; position embeddings start as 2-D sines and cosines, dense layers with variance
1 / fan-in; digits are deformed at random, to augment 1,348 of them. The loss is the
cross-entropy at [CLS] and nothing else: an auxiliary loss on image tokens would build
in what the package is there to measure.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float, Int, UInt8

import vitjax
from vitjax.data.textured_digits import CLASSES, TexturedDigits
from vitjax.models.model import Model, Provenance
from vitjax.types import ArrayLike, Config


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that the trained weights depend on.

    Args:
        config: the architecture.
        steps: optimizer steps.
        batch_size: images per step, each seen once.
        muon_rate: peak learning rate of the block matrices, in spectral norm.
        adam_rate: peak learning rate of everything else.
        warmup: steps of linear rise.
        weight_decay: decoupled, times the learning rate.
        correlation: of contexts with classes in training, in [0, 1].
        deform: strength of random deformation of the digits, in [0, 1].
        seed: of the initial weights and of the images.
    """

    config: Config = Config(64, 8, dim=128, depth=6, heads=4, mlp_dim=512)
    steps: int = 3000
    batch_size: int = 64
    muon_rate: float = 0.02
    adam_rate: float = 2e-3
    warmup: int = 50
    weight_decay: float = 0.05
    correlation: float = 0.5
    deform: float = 0.7
    seed: int = 0

    def batch(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """The images, uint8, and labels of one step."""
        source = TexturedDigits(
            part="train",
            correlation=self.correlation,
            seed=self.seed,
            deform=self.deform,
        )
        indices = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        batch = source.compose(indices)
        return batch.images, batch.label.astype(np.int32)


class State(NamedTuple):
    """What a step changes, and a restart reads from disk."""

    step: int
    params: Any
    optimizer: Any


def train(
    *,
    out: pathlib.Path,
    recipe: Recipe = Recipe(),
    save_every: int = 100,
    pictures: int = 5000,
) -> Model:
    """Train the embedded model, resuming from what `out` already holds.

    Args:
        out: folder of the checkpoint, model.safetensors (float16) and config.json, of
            state.msgpack, which a restart reads, and of log.csv, the learning curve.
        recipe: what is trained and how.
        save_every: steps between states on disk.
        pictures: number of unseen images per correlation in the last evaluation.
    """
    if jax.process_count() > 1:
        raise ValueError(f"Train with one process, not {jax.process_count()}.")
    out.mkdir(parents=True, exist_ok=True)
    claim(out, recipe)
    state = restore(start(recipe), out)
    step = make_step(recipe)
    losses, began = [], time.perf_counter()
    while state.step < recipe.steps:
        images, label = recipe.batch(state.step)
        params, optimizer, loss = step(state.params, state.optimizer, images, label)
        state = State(state.step + 1, params, optimizer)
        losses.append(float(loss))
        if state.step % save_every == 0 or state.step == recipe.steps:
            seconds = (time.perf_counter() - began) / len(losses)
            save(state, recipe, out)
            report(state, recipe, out, loss=float(np.mean(losses)), seconds=seconds)
            losses, began = [], time.perf_counter()
    model = as_model(state.params, recipe)
    for correlation in (0.0, 0.5, 1.0):
        top1 = accuracy(model, correlation=correlation, pictures=pictures)
        print(
            f"correlation {correlation:g}: top-1 {top1:.4f} of {pictures}", flush=True
        )
    return model


def claim(folder: pathlib.Path, recipe: Recipe) -> None:
    """Write the recipe into the folder; an existing one must be equal."""
    path = folder / "recipe.json"
    text = json.dumps(dataclasses.asdict(recipe), indent=1) + "\n"
    if path.exists() and path.read_text() != text:
        raise ValueError(
            f"{path} is of another recipe. Resume with the same recipe, or give "
            "another folder."
        )
    path.write_text(text)


def start(recipe: Recipe) -> State:
    """Initial weights and optimizer state, a pure function of the recipe."""
    model = vitjax.init(recipe.config, classes=CLASSES, seed=recipe.seed)
    params = rescale(model.params, jax.random.key(recipe.seed))
    # Deviation 0.02, as of other weights; [CLS] has no position of its own.
    params["cls"] = params["cls"] * (0.02 / 1e-6)
    prefix = jnp.zeros((1, recipe.config.prefix, recipe.config.dim))
    params["pos_embedding"] = jnp.concatenate([prefix, 0.5 * sines(recipe.config)], 1)
    with loose_promotion():
        return State(0, params, make_optimizer(recipe).init(params))


def rescale(params: dict[str, Any], key: Array) -> dict[str, Any]:
    """Block matrices drawn with deviation 1 / sqrt(fan-in)."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(params)

    def draw(path, leaf, key):
        name = jax.tree_util.keystr(path)
        if not is_block_matrix(path):
            return leaf
        fan_in = leaf.shape[1] * (leaf.shape[2] if "'out'" in name else 1)
        # Half where a sub-layer writes to the residual stream.
        gain = 0.5 if "'out'" in name or "Dense_1" in name else 1.0
        return jax.random.normal(key, leaf.shape) * (gain / fan_in**0.5)

    keys = jax.random.split(key, len(leaves))
    return tree.unflatten([draw(p, x, k) for (p, x), k in zip(leaves, keys)])


def is_block_matrix(path: Any) -> bool:
    """Whether a parameter is one of the stacked matrices of the encoder blocks."""
    name = jax.tree_util.keystr(path)
    return "encoderblock" in name and "kernel" in name


def sines(config: Config) -> Float[Array, "1 patch dim"]:
    """Position embeddings: sines and cosines of row and column, four equal parts."""
    waves = 100.0 ** (-np.arange(config.dim // 4) / (config.dim // 4))
    positions = np.meshgrid(*map(np.arange, config.grid), indexing="ij")
    parts = [f(t.reshape(-1, 1) * waves) for t in positions for f in (np.sin, np.cos)]
    return jnp.asarray(np.concatenate(parts, axis=1)[None], jnp.float32)


def make_optimizer(recipe: Recipe) -> optax.GradientTransformation:
    """Muon for the block matrices, Adam for the rest; both with decoupled decay."""
    from optax.contrib import MuonDimensionNumbers, muon

    def axes(path, leaf):
        if not is_block_matrix(path):
            return None
        if "'out'" in jax.tree_util.keystr(path):
            return MuonDimensionNumbers((1, 2), 3)
        return MuonDimensionNumbers(1, (2, 3) if leaf.ndim == 4 else 2)

    def schedule(rate):
        return optax.warmup_cosine_decay_schedule(0, rate, recipe.warmup, recipe.steps)

    return muon(
        schedule(recipe.muon_rate),
        adam_learning_rate=schedule(recipe.adam_rate),
        adam_b2=0.98,
        weight_decay=recipe.weight_decay,
        adam_weight_decay=recipe.weight_decay,
        muon_weight_dimension_numbers=functools.partial(
            jax.tree_util.tree_map_with_path, axes
        ),
    )


@contextlib.contextmanager
def loose_promotion() -> Iterator[None]:
    """Allow optax's Muon to mix dtypes and ranks, whatever JAX's flags are."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@functools.lru_cache(maxsize=4)
def make_step(recipe: Recipe) -> Any:
    """(params, optimizer state, images, label) -> both after one step, and the loss."""
    optimizer = make_optimizer(recipe)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, state, images, label):
        loss, grads = jax.value_and_grad(cross_entropy)(
            params, images, label, config=recipe.config
        )
        # [CLS] is learned itself; a position on top would be trained twice as fast.
        position = grads["pos_embedding"]
        grads["pos_embedding"] = position.at[:, : recipe.config.prefix].set(0)
        with loose_promotion():
            updates, state = optimizer.update(grads, state, params)
            return optax.apply_updates(params, updates), state, loss

    return step


def cross_entropy(
    params: Any,
    images: UInt8[ArrayLike, "batch height width 3"],
    label: Int[ArrayLike, " batch"],
    *,
    config: Config,
) -> Float[Array, ""]:
    """Mean cross-entropy of the logits at [CLS]."""
    model = Model(params=params, config=config, classes=CLASSES)
    logits = model.apply(normalize(images), method="__call__")
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()


def normalize(
    images: UInt8[ArrayLike, "batch height width 3"],
) -> Float[Array, "batch height width 3"]:
    """The model's `Preprocess` on device: (x / 255 - 0.5) / 0.5."""
    return (jnp.asarray(images, jnp.float32) / 255 - 0.5) / 0.5


def accuracy(model: Model, *, correlation: float, pictures: int = 5000) -> float:
    """Top-1 on the first unseen digits and textures, in [0, 1]."""
    source = TexturedDigits(part="test", correlation=correlation)
    correct = 0
    for first in range(0, pictures, 250):
        batch = source.compose(np.arange(first, min(first + 250, pictures)))
        prediction = np.asarray(predict(model, batch.images))
        correct += int((prediction == batch.label).sum())
    return correct / pictures


@jax.jit
def predict(
    model: Model, images: UInt8[ArrayLike, "batch height width 3"]
) -> Int[Array, " batch"]:
    """The class of largest logit."""
    return model.apply(normalize(images), method="__call__").argmax(-1)


def as_model(params: Any, recipe: Recipe) -> Model:
    """The weights with everything else that a checkpoint holds."""
    return Model(
        params=params,
        config=recipe.config,
        classes=CLASSES,
        class_ids=CLASSES,
        preprocess=vitjax.Preprocess(*recipe.config.shape),
        provenance=Provenance(
            name="textured_digits", path="checkpoints/train_textured_digits.py"
        ),
    )


def save(state: State, recipe: Recipe, folder: pathlib.Path) -> None:
    """Write the state atomically, and the checkpoint."""
    part = folder / "state.msgpack.part"
    part.write_bytes(flax.serialization.to_bytes(state))
    os.replace(part, folder / "state.msgpack")
    vitjax.save(as_model(state.params, recipe), folder, dtype="float16")


def restore(state: State, folder: pathlib.Path) -> State:
    """The state on disk if there is one, else the given one."""
    path = folder / "state.msgpack"
    if not path.exists():
        return state
    return flax.serialization.from_bytes(state, path.read_bytes())


def report(
    state: State, recipe: Recipe, folder: pathlib.Path, *, loss: float, seconds: float
) -> None:
    """One line on the terminal and in `log.csv`."""
    top1 = accuracy(as_model(state.params, recipe), correlation=0.0, pictures=500)
    line = f"{state.step},{loss:.4f},{top1:.3f},{seconds:.3f}"
    print(line, flush=True)
    with (folder / "log.csv").open("a") as file:
        if file.tell() == 0:
            file.write("step,loss,top1_correlation_0,seconds_per_step\n")
        file.write(line + "\n")


if __name__ == "__main__":
    tyro.cli(train)
