"""What tests against other libraries share: miniatures, and what both compute."""

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


def compare(torch, model, ours, call=None) -> float:
    """The largest difference of residual streams, and of logits or embeddings.

    Their blocks are the first list of as many equal modules as we have.
    """
    images, states = tiny.images(ours.config), []

    def keep(module, inputs, output):
        states.append(output[0] if isinstance(output, tuple) else output)

    lists = torch.nn.ModuleList | torch.nn.Sequential
    blocks = next(
        each
        for each in model.modules()
        if isinstance(each, lists)
        and len(each) == ours.config.depth
        and len(set(map(type, each))) == 1
    )
    hooks = [block.register_forward_hook(keep) for block in blocks]
    with torch.no_grad():
        theirs = (call or model)(torch.tensor(images.transpose(0, 3, 1, 2)))
    for hook in hooks:
        hook.remove()
    logits, trace = vitjax.forward(ours, images, capture=("residual",))
    assert len(states) == ours.config.depth
    gaps = [difference(mine, state) for mine, state in zip(trace.residual, states)]
    outputs = "logits_per_image", "logits"
    if not ours.classes:
        outputs = "image_embeds", "pooler_output"
        logits = ours.apply(trace.residual[-1], Edits(), method="embed_image")
        logits = ours.class_space.finish(logits)
    for output in outputs:
        theirs = getattr(theirs, output, theirs)
    if not ours.classes and ours.config.head == "cosine":
        theirs = unit(theirs.numpy())
    return max(*gaps, difference(logits, theirs))
