"""Chunks are dealt out whole, fairly, to all, and nothing is done twice."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vitjax.runner.dealing import batch_sizes, deal, dealt, undone


def parts(done, *, chunk, share, processes):
    return [
        deal(
            done,
            images_per_chunk=chunk,
            share=share,
            process=process,
            processes=processes,
        )
        for process in range(processes)
    ]


def images(part):
    return [image for start, stop in part.spans for image in range(start, stop)]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=90),
    st.integers(1, 12),
    st.integers(1, 12),
    st.integers(1, 6),
)
def test_everything_left_is_done_once_and_chunks_are_whole(
    flags, chunk, share, processes
):
    done = np.array(flags)
    found = parts(done, chunk=chunk, share=share, processes=processes)
    taken = [image for part in found for image in images(part)]
    assert len(taken) == len(set(taken))
    assert set(np.flatnonzero(~done)) <= set(taken)
    owners = {image // chunk: set() for image in taken}
    for process, part in enumerate(found):
        for image in images(part):
            owners[image // chunk].add(process)
    assert all(len(process) == 1 for process in owners.values())
    (counts,) = {tuple(part.counts) for part in found}  # the same in all processes
    assert sum(counts) == len(taken)
    steps = [len(batch_sizes(part.spans, share)) for part in found]
    assert len(counts) == max(steps)


def test_a_new_run_is_dealt_out_evenly():
    found = parts(np.zeros(1000, bool), chunk=16, share=8, processes=4)
    assert [len(images(part)) for part in found] == [256, 240, 256, 248]
    assert found[1].spans == [(256, 496)]
    assert found[0].counts == [32] * 30 + [24, 16]
    uneven = dealt(np.zeros(50, bool), 10, 5, 4)  # five chunks, four processes
    assert sorted(stop - start for ((start, stop),) in uneven) == [10, 10, 10, 20]


def test_what_is_done_is_not_dealt_out():
    done = np.zeros(40, bool)
    done[:20] = True
    first, second = parts(done, chunk=5, share=5, processes=2)
    assert first.spans == [(20, 30)] and second.spans == [(30, 40)]
    nobody = parts(np.ones(40, bool), chunk=5, share=5, processes=2)
    assert [part.spans for part in nobody] == [[], []] and nobody[0].counts == []


def test_more_processes_than_chunks_take_blank_steps():
    found = parts(np.zeros(8, bool), chunk=4, share=2, processes=3)
    assert sorted(len(part.spans) for part in found) == [0, 1, 1]
    assert {tuple(part.counts) for part in found} == {(4, 4)}


@pytest.mark.parametrize("share", [3, 4, 7])
def test_one_process_does_all_that_is_left(share):
    done = np.zeros(23, bool)
    done[:8] = True
    part = deal(done, images_per_chunk=8, share=share)
    assert part.spans == undone(done, batch_size=share)
    assert list(itertools.accumulate(part.counts))[-1] == len(images(part))


def test_undone_joins_neighbouring_batches():
    done = np.zeros(11, bool)
    assert undone(done, batch_size=4) == [(0, 11)]
    done[4:8] = True
    assert undone(done, batch_size=4) == [(0, 4), (8, 11)]
    done[9] = True
    assert undone(done, batch_size=4) == [(0, 4), (8, 11)]
    assert undone(np.ones(11, bool), batch_size=4) == []
