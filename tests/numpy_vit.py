"""An independent Vision Transformer: float64 numpy, from the papers' formulas."""

import functools
import math

import jax
import numpy as np
from scipy.special import erf


def reference(model, images, edit=lambda field, layer, image, x: x):
    """(class logits, final residual stream) in float64 numpy, one image at a time.

    `edit` takes every field of `Trace`, with the axes of one block and image.
    """
    cfg = model.config
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), model.params)

    def norm(x, q):
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + cfg.epsilon)
        return x * q["scale"] + q["bias"]

    def gelu(x):
        if cfg.gelu == "erf":
            return x * 0.5 * (1 + erf(x / math.sqrt(2)))
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def attention(x, q, tap):
        bias = (lambda n: q[n]["bias"]) if cfg.qkv_bias else (lambda n: 0.0)
        qkv = {
            n: (np.einsum("td,dhk->thk", x, q[n]["kernel"]) + bias(n)).swapaxes(0, 1)
            for n in ("query", "key", "value")
        }
        for n in ("query", "key") if cfg.qk_norm else ():
            qkv[n] = norm(qkv[n], q[f"{n}_norm"])
        query, key, value = (
            tap(field, qkv[n].swapaxes(0, 1)).swapaxes(0, 1)
            for n, field in zip(qkv, ("queries", "keys", "values"))
        )
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(cfg.head_dim)
        scores = tap("attention_scores", scores)
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        weights = tap("attention_weights", scores / scores.sum(-1, keepdims=True))
        mixed = tap("mixed_values", (weights @ value).swapaxes(0, 1))
        return np.einsum("thk,hkd->td", mixed, q["out"]["kernel"]) + q["out"]["bias"]

    def mlp(x, q, tap):
        hidden = x @ q["Dense_0"]["kernel"] + q["Dense_0"]["bias"]
        hidden = tap("mlp_preactivation", hidden)
        if cfg.mlp == "swiglu":
            up = x @ q["up"]["kernel"] + q["up"]["bias"]
            hidden = hidden / (1 + np.exp(-hidden)) * up
        else:
            hidden = gelu(hidden)
        hidden = tap("mlp_hidden", hidden)
        return hidden @ q["Dense_1"]["kernel"] + q["Dense_1"]["bias"]

    def update(f, x, q, i):
        n = q[f"LayerNorm_{i}"]
        y = norm(f(x), n) if cfg.norm == "residual_post" else f(norm(x, n))
        return y * q[f"LayerScale_{i}"]["gamma"] if cfg.layer_scale else y

    def run(number, image):
        side, (rows, columns) = cfg.patch_size, cfg.grid
        patches = image.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
        kernel = p["embedding"]["kernel"].reshape(-1, cfg.dim)
        x = patches.reshape(rows * columns, -1) @ kernel + p["embedding"]["bias"]
        prefix = [p[n][0] for n in ("cls", "registers") if n in p]
        x = np.concatenate([*prefix, x]) + p["pos_embedding"][0]
        x = edit("embedding", 0, number, x)
        for i in range(cfg.depth):
            q = jax.tree.map(lambda a, i=i: a[i], p["Transformer"]["encoderblock"])
            mha, dense = q["MultiHeadDotProductAttention_0"], q["MlpBlock_0"]
            tap = lambda field, x, i=i: edit(field, i, number, x)  # noqa: E731
            attend = functools.partial(attention, q=mha, tap=tap)
            x = x + tap("attention_update", update(attend, x, q, 0))
            transform = functools.partial(mlp, q=dense, tap=tap)
            x = x + tap("mlp_update", update(transform, x, q, 1))
            x = tap("residual", x)
        pooled = x[0] if cfg.class_token else x[cfg.prefix :].mean(0)
        final = p["Transformer"]["encoder_norm"]
        heads = [(pooled, "head")]
        heads += [(x[1], "head_dist")] if cfg.distilled else []
        logits = [norm(y, final) @ p[n]["kernel"] + p[n]["bias"] for y, n in heads]
        return np.mean(logits, 0), x

    results = zip(*map(run, *zip(*enumerate(np.asarray(images, np.float64)))))
    return tuple(map(np.stack, results))
