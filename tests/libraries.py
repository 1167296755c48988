"""What tests against other libraries share: miniatures, and what both compute."""

from typing import Any, NamedTuple

import numpy as np
import safetensors.numpy
import tiny

import vitjax
from vitjax.types import Edits

TRANSFORMERS = dict(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=24,
    image_size=32,
    patch_size=8,
)
TIMM = dict(img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2)
TIMM |= dict(num_classes=7, mlp_ratio=1.5)


def randomize(torch, model, scale: float = 0.3):
    """Every parameter random, norms and biases too."""
    generator = torch.Generator().manual_seed(0)
    for name, leaf in model.named_parameters():
        values = torch.randn(leaf.shape, generator=generator) * scale
        one = "norm" in name or "ln_" in name or "gamma" in name or "lambda" in name
        leaf.data = values + 1 if one and not name.endswith("bias") else values
    return model.eval()


def save(model, path) -> dict[str, np.ndarray]:
    """Write a model's state dict as safetensors."""
    state = model.state_dict().items()
    arrays = {key: value.contiguous().numpy() for key, value in state}
    safetensors.numpy.save_file(arrays, path)
    return arrays


def difference(ours, theirs) -> float:
    """The largest |ours - theirs| / (1 + |theirs|)."""
    ours, theirs = np.asarray(ours), np.asarray(theirs)
    assert ours.shape == theirs.shape
    return float((np.abs(ours - theirs) / (1 + np.abs(theirs))).max())


def unit(rows):
    """Rows of unit length."""
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class Computed(NamedTuple):
    """Their output, ours, and the largest difference of residual streams."""

    theirs: Any
    logits: Any
    embedding: Any
    residual: float


def run(torch, model, blocks, ours, call=None) -> Computed:
    """What both make of random images; their blocks end in our residual streams."""
    images, states = tiny.images(ours.config), []

    def keep(module, inputs, output):
        states.append(output[0] if isinstance(output, tuple) else output)

    hooks = [block.register_forward_hook(keep) for block in blocks]
    pixels = torch.tensor(images.transpose(0, 3, 1, 2))
    with torch.no_grad():
        theirs = (call or model)(pixels)
    for hook in hooks:
        hook.remove()
    logits, trace = vitjax.forward(ours, images, capture=("residual",))
    assert len(states) == len(blocks) in (0, ours.config.depth)
    gaps = [difference(mine, state) for mine, state in zip(trace.residual, states)]
    embedding = ours.apply(trace.residual[-1], Edits(), method="embed_image")
    embedding = ours.class_space.finish(embedding)
    theirs = getattr(theirs, "logits", theirs)
    return Computed(theirs, logits, embedding, max(gaps, default=0.0))
