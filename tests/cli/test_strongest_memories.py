"""The table of the strongest memories."""

import numpy as np
import pytest
import tiny

import vitjax
from vitjax.cli.strongest_memories import neurons

MODEL = tiny.make(tiny.CONFIGS["plain"])


@pytest.mark.parametrize("system", ("mlp", "attention"))
def test_the_strongest_come_first(system):
    found = neurons(MODEL, system=system, count=4, k=3)
    assert [n.layer for n in found] == [0] * 4 + [1] * 4
    values = np.asarray(vitjax.memory_values(MODEL)[system])
    embedding = np.asarray(MODEL.class_space.embedding)
    for neuron in found:
        logits = embedding @ values[neuron.layer, neuron.memory]
        best = np.argsort(-logits)[:3]
        assert neuron.classes == tuple(MODEL.classes[c] for c in best)
        np.testing.assert_allclose(neuron.logits, logits[best], atol=1e-5)
        head = neuron.memory // 8 if system == "attention" else None
        assert neuron.head == head
    strongest = (values[1] @ embedding.T).max(1)
    order = np.argsort(-strongest)[:4]
    assert [n.memory for n in found[4:]] == order.tolist()


def test_chosen_memories_of_chosen_blocks():
    found = neurons(MODEL, layers=[-1], memories=[5, 2])
    assert [(n.layer, n.memory) for n in found] == [(1, 5), (1, 2)]
    few = tiny.make(tiny.CONFIGS["one_block"], classes=("a", "b"))
    assert all(len(n.classes) == 2 for n in neurons(few))
    with pytest.raises(ValueError, match=r"2 blocks of 24 memories.*\[2, 99\]"):
        neurons(MODEL, layers=[2], memories=[99])
    with pytest.raises(ValueError, match="asked for"):
        neurons(MODEL, k=8)
