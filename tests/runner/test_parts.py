"""Batches in order, the next dispatched before the last is handed on."""

import weakref

import pytest
from vitjax.runner.buffer import Part
from vitjax.runner.job import Job

from vitjax.runner import parts

NO_JOB = object.__new__(Job)


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


def test_a_batch_that_is_through_is_kept_by_nobody(monkeypatch):
    alive, most = weakref.WeakSet(), []

    class Outputs:
        pass

    def dispatched(*arguments):
        for _ in range(4):
            outputs = Outputs()
            alive.add(outputs)
            most.append(len(alive))
            yield None, [], outputs
            del outputs

    def left_behind(job, dispatch, *, pictures):
        return Part(pictures, {}, [], [])

    monkeypatch.setattr(parts, "dispatched", dispatched)
    monkeypatch.setattr(parts, "left_behind", left_behind)
    made = parts.computed(NO_JOB, [], on_error="stop", pictures=3)
    assert [part.start for part in made] == [3, 3, 3, 3]
    assert most == [1, 2, 2, 2]
