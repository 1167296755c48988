"""Batches in order, the next dispatched before the last is handed on."""

import pytest

from vitjax.runner import parts


def test_one_behind_hands_over_what_came_before_an_error():
    drawn = []

    def items():
        for item in range(3):
            drawn.append(item)
            yield item
        raise RuntimeError("broken")

    seen = []
    with pytest.raises(RuntimeError, match="broken"):
        for item in parts.one_behind(items()):
            seen.append((item, len(drawn)))
    assert seen == [(0, 2), (1, 3), (2, 3)]
