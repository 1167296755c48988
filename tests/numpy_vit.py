"""An independent Vision Transformer: float64 numpy, from the papers' formulas."""

import functools
import math

import jax
import numpy as np
from scipy.special import erf


def layer_norm(x, q, epsilon):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon)
    return x * q["scale"] + q["bias"]


def activation(x, kind):
    if kind == "quick":
        return x / (1 + np.exp(-1.702 * x))
    if kind == "erf":
        return x * 0.5 * (1 + erf(x / math.sqrt(2)))
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def softmax(scores):
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)


def by_head(x, q):
    """[token dim] as [head token key]."""
    bias = q.get("bias", np.zeros((1, 1)))
    return np.einsum("td,dhk->htk", x, q["kernel"]) + bias[:, None]


def of_heads(mixed, q):
    """[head token key] as [token dim]."""
    return np.einsum("htk,hkd->td", mixed, q["kernel"]) + q["bias"]


def reference(model, images, edit=lambda field, layer, image, x: x):
    """(class logits, final residual stream) in float64 numpy, one image at a time.

    `edit` takes every field of `Trace`, with the axes of one block and image.
    """
    cfg = model.config
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), model.params)
    norm = functools.partial(layer_norm, epsilon=cfg.epsilon)
    gelu = functools.partial(activation, kind=cfg.gelu)

    def attention(x, q, tap):
        qkv = {n: by_head(x, q[n]) for n in ("query", "key", "value")}
        for n in ("query", "key") if cfg.qk_norm else ():
            qkv[n] = norm(qkv[n], q[f"{n}_norm"])
        query, key, value = (
            tap(field, qkv[n].swapaxes(0, 1)).swapaxes(0, 1)
            for n, field in zip(qkv, ("queries", "keys", "values"))
        )
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(cfg.head_dim)
        scores = tap("attention_scores", scores)
        weights = tap("attention_weights", softmax(scores))
        mixed = tap("mixed_values", (weights @ value).swapaxes(0, 1))
        return of_heads(mixed.swapaxes(0, 1), q["out"])

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
        image = image[: rows * side, : columns * side]
        patches = image.reshape(rows, side, columns, side, 3).transpose(0, 2, 1, 3, 4)
        kernel = p["embedding"]["kernel"].reshape(-1, cfg.dim)
        x = patches.reshape(rows * columns, -1) @ kernel
        x = x + p["embedding"]["bias"] if cfg.patch_bias else x
        prefix = [p[n][0] for n in ("cls", "registers") if n in p]
        x = np.concatenate([*prefix, x]) + p["pos_embedding"][0]
        x = norm(x, p["embed_norm"]) if cfg.embed_norm else x
        streams = []
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
            streams.append(x)
        return head(streams), x

    final = p["Transformer"]["encoder_norm"]

    def attention_pool(z):
        q = p["MAPHead_0"]
        query, key = by_head(q["probe"][0], q["query"]), by_head(z, q["key"])
        weights = softmax(query @ key.swapaxes(1, 2) / math.sqrt(cfg.head_dim))
        (f,) = of_heads(weights @ by_head(z, q["value"]), q["out"])
        hidden = norm(f, q["LayerNorm_0"]) @ q["Dense_0"]["kernel"]
        hidden = gelu(hidden + q["Dense_0"]["bias"])
        return f + hidden @ q["Dense_1"]["kernel"] + q["Dense_1"]["bias"]

    def head(streams):
        x, bias = streams[-1], p["head"]["bias"] + p["head"].get("logit_bias", 0.0)
        kernel, z = p["head"]["kernel"], norm(x, final)
        if cfg.pooling == "cls_mean":
            logits = z[0] @ kernel + bias
            logits = logits + z[cfg.prefix :].mean(0) @ p["head_patches"]["kernel"]
            for i in range(1, cfg.head_blocks):
                earlier = p["head_earlier"]["kernel"][-i]
                logits = logits + norm(streams[-1 - i][0], final) @ earlier
            return logits
        if cfg.pooling == "map":
            f = attention_pool(z)
        elif cfg.pooling == "cls":
            f = z[0]
        elif cfg.pool_norm == "before":
            f = z[cfg.prefix :].mean(0)
        else:
            f = norm(x[cfg.prefix :].mean(0), final)
        f = f @ p["projection"]["kernel"] if cfg.projection else f
        if cfg.head == "cosine":
            f = p["head"]["temperature"] * f / np.linalg.norm(f)
        logits = f @ kernel + bias
        if cfg.distilled:
            other = p["head_dist"]
            logits = (logits + norm(x[1], final) @ other["kernel"] + other["bias"]) / 2
        return logits

    results = zip(*map(run, *zip(*enumerate(np.asarray(images, np.float64)))))
    return tuple(map(np.stack, results))
