"""What a run of probes is made of."""

import pytest
from vitjax.runner.probe_study import check_streams, keep_counts


def test_kept_tokens_are_evenly_spaced_and_never_all():
    assert keep_counts(49, steps=48) == tuple(range(1, 49))
    assert keep_counts(49, steps=1000) == tuple(range(1, 49))
    assert keep_counts(196, steps=6) == (1, 40, 79, 117, 156, 195)
    assert keep_counts(17, steps=1) == (8,)
    assert keep_counts(2, steps=5) == (1,)
    assert keep_counts(1, steps=5) == (1,)
    with pytest.raises(ValueError, match="steps is 0"):
        keep_counts(4, steps=0)


def test_streams_stand_in_our_order():
    assert check_streams(["mlp_update", "residual"]) == ("residual", "mlp_update")
    with pytest.raises(ValueError, match="Unknown"):
        check_streams(["residual", "embedding"])
