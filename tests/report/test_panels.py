import numpy as np

from vitjax.report.panels import panels
from vitjax.report.per_image import STREAMS


def test_one_run_puts_kinds_of_tokens_together(make_run, curves):
    rows = curves(make_run(masks=True))
    found = panels(rows, streams=["residual"], measure="identifiability")
    names = [[series.name for series in panel.series] for panel in found]
    assert names == [["[CLS]", "image tokens"], ["class tokens", "context tokens"]]
    assert all(panel.quartiles and not panel.relative for panel in found)
    rates = panels(rows, streams=["residual"], measure="rate")
    assert [len(panel.series) for panel in rates] == [1, 1, 2]
    assert not any(panel.quartiles for panel in rates)


def test_several_runs_share_panels(make_run, curves):
    deep = make_run(fields={"depth": 5}, classes=10)
    gap = make_run(fields={"class_token": False})
    rows = curves(make_run(), deep, gap)
    updates = [name for name in STREAMS if name != "residual"]
    found = panels(rows, streams=updates, measure="identifiability")
    assert [panel.title for panel in found] == [
        "attention: [CLS]",
        "attention: image tokens",
        "MLP: [CLS]",
        "MLP: image tokens",
    ]
    assert [series.name for series in found[0].series] == ["a", "b"]
    assert [series.name for series in found[1].series] == ["a", "b", "c"]
    assert found[0].chance == (0.55, 0.6) and found[0].relative
    assert found[1].x(found[1].series[1]) == [0.2, 0.4, 0.6, 0.8, 1.0]


def test_nothing_to_draw(make_run, curves):
    rows = curves(make_run(change={"label": np.full(9, -1, np.int32)}))
    assert panels(rows, streams=["residual"], measure="rate") == []
