"""Files of a report: what is plotted is what the CSV says."""

import base64
import csv

import pytest
from PIL import Image

from vitjax.report import writing
from vitjax.report.panels import panels


def test_cells_that_mean_nothing_are_empty(tmp_path):
    rows = [
        {"run": 'a "b", c', "value": 1 / 3, "p": float("nan"), "label": None},
        {"run": "é", "value": 2.0, "p": 0.5, "label": 7},
    ]
    link = writing.write_csv(tmp_path / "x.csv", rows)
    head, content = link.split(",", 1)
    assert head == "data:text/csv;base64"
    assert base64.b64decode(content) == (tmp_path / "x.csv").read_bytes()
    with (tmp_path / "x.csv").open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert first == {"run": 'a "b", c', "value": "0.33333333", "p": "", "label": ""}
    assert second == {"run": "é", "value": "2", "p": "0.5", "label": "7"}


def test_rows_of_other_columns_are_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="fields not in"):
        writing.write_csv(tmp_path / "x.csv", [{"a": 1}, {"b": 2}])


def test_a_figure_and_its_numbers_share_a_name(make_run, curves, tmp_path):
    rows = curves(make_run())
    drawn = panels(rows, streams=("residual",), measure="rate")
    made = writing.draw(tmp_path, "rate", drawn, rows)
    with Image.open(tmp_path / "rate.png") as image:
        assert min(image.size) > 100
    with (tmp_path / "rate.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert made["key"] == "rate" and len(made["drawings"]) == len(drawn)
    assert all(drawing.startswith("<svg") for drawing in made["drawings"])
    captioned = writing.Captioned("again", "Above", "Below.", drawn, rows)
    again = writing.draw_captioned(tmp_path, captioned)
    assert again["title"] == "Above" and again["caption"] == "Below."
    assert again["csv"] == made["csv"] and (tmp_path / "again.png").exists()
