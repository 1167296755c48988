"""Maps that are read off one forward and one backward pass, alone or together.

A method is a function `method(model, target, edits, **options) -> Reader`: what it
reads block by block, and what it makes of that. Several of them share their passes.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int

from vitjax.analysis.class_space import take_label
from vitjax.models.backward import scan_reverse
from vitjax.models.backward_rules import Rules
from vitjax.models.forward import run_blocks
from vitjax.models.model import Model
from vitjax.types import ArrayLike, Edits

Images = Float[ArrayLike, "batch height width channel"]
Target = Int[ArrayLike, " batch"]
Map = Float[Array, "batch patch"]


class Reads(NamedTuple):
    """The final residual stream, and what was read block by block, [layer ...]."""

    x: Array
    forward: Any
    backward: Any
    state: Any


class Reader(NamedTuple):
    """What a method reads in a forward and in a backward pass.

    `forward` is a `read` of `run_blocks` that takes the context; `backward`, its state
    from `start`, and the others are arguments of `scan_reverse`. `finish` makes maps of
    all tokens, [... token], of what was read.
    """

    finish: Callable[[Reads], Float[Array, "... token"]] = lambda reads: reads.state
    forward: Callable[..., Any] = lambda params, stream_in, trace, context: ()
    backward: Callable[..., tuple[Any, Any]] | None = None
    start: Callable[[Array, Any], Any] = lambda x, gradient: None
    rules: tuple[Rules, ...] = (Rules(),)
    fields: tuple[str, ...] = ("attention_weights",)
    blocks: int | None = None


def row_of_head(model: Model, edits: Edits) -> Callable[[Array, Any], Array]:
    """A `start`: the weight of each token in what the head reads, [batch token]."""
    return lambda x, gradient: model.apply(x, edits, method="token_weights")


def target_logit(target: Target):
    """Class logits -> the sum over images of each one's target logit z."""
    return lambda logits: take_label(logits, target).sum()


def read_maps(
    model: Model,
    images: Images,
    target: Target,
    edits: Edits,
    methods: Mapping[str, Callable[..., Reader]],
    *,
    presence: Float[Array, "batch token"] | None = None,
) -> dict[str, Float[Array, "... patch"]]:
    """Maps by one forward pass, and one backward for each set of rules and blocks."""
    readers = {name: method(model, target, edits) for name, method in methods.items()}
    passes: dict[int | None, dict[str, Reader]] = {}
    for name, reader in readers.items():
        if reader.backward:
            passes.setdefault(reader.blocks, {})[name] = reader

    def read_forward(params, stream_in, trace, context):
        block = params, stream_in, trace, context
        reads = {name: reader.forward(*block) for name, reader in readers.items()}
        return (stream_in if passes else None), reads

    _, x, _, (inputs, forward) = run_blocks(
        model, images, read_forward, edits=edits, pass_context=True
    )
    states, backward = {}, {}
    for blocks, group in passes.items():
        rules = list(dict.fromkeys(each for r in group.values() for each in r.rules))

        def read(states, *gradients, group=group, rules=rules):
            of_rules, outs = dict(zip(rules, gradients)), {}
            for name, reader in group.items():
                own = map(of_rules.get, reader.rules)
                outs[name] = reader.backward(states[name], *own)  # pyright: ignore
            states = {name: state for name, (state, _) in outs.items()}
            return states, {name: out for name, (_, out) in outs.items()}

        def start(*ends, group=group):
            return {name: reader.start(*ends) for name, reader in group.items()}

        ends, reads = scan_reverse(
            model,
            x,
            inputs,
            target_logit(target),
            read,
            state=start,
            edits=edits,
            presence=presence,
            rules=rules,
            fields=sorted({field for r in group.values() for field in r.fields}),
            blocks=blocks,
        )
        states, backward = states | ends, backward | reads
    maps = {}
    for name, reader in readers.items():
        own = [values.get(name) for values in (forward, backward, states)]
        maps[name] = reader.finish(Reads(x, *own))[..., model.config.prefix :]
    return maps


def read_map(
    method: Callable[..., Reader],
    model: Model,
    images: Images,
    target: Target,
    edits: Edits,
    **options: Any,
) -> Float[Array, "... patch"]:
    """The map of one method."""
    reader = functools.partial(method, **options)
    return read_maps(model, images, target, edits, {"map": reader})["map"]
