import base64
import csv
import html.parser
import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from vitjax.runner.storage import DamageError

from vitjax.report import document, reduction
from vitjax.report.per_image import digest

VOID = {"meta", "img", "br", "link", "input", "hr"}


SPREADS = ("identifiability_boxes", "context_boxes", "identifiable_tokens")
"""Figures of distributions that every run with masks has."""


class Page(html.parser.HTMLParser):
    """Checks that tags close in order; collects what the page refers to and says."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.sources, self.text = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attributes:
            if name in ("src", "srcset", "data", "poster", "action"):
                self.sources.append(value)
            if name in ("href", "xlink:href"):
                self.links.append((tag, value))

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def report(runs, tmp_path):
    path = document.write_report(runs, tmp_path / "out")
    assert path == tmp_path / "out" / "report.html"
    return Page(path.read_text("utf-8"))


def table(path):
    return list(csv.DictReader(path.read_text("utf-8").splitlines()))


@pytest.fixture(scope="module")
def masked_report(masked_run, tmp_path_factory):
    """(folder, page) of a report on one run with masks."""
    folder = tmp_path_factory.mktemp("report")
    return folder / "out", report([masked_run], folder)


def test_files(masked_report):
    folder, _ = masked_report
    files = {p.name for p in (folder / "figures").iterdir()}
    names = ("identifiability", "updates", "rate", "maps", *SPREADS)
    expected = {f"{name}.{kind}" for name in names for kind in ("png", "csv")}
    assert files == expected | {"summary.csv", "tests.csv"}
    for path in (folder / "figures").glob("*.png"):
        Image.open(path).verify()


def test_page_needs_nothing_else(masked_report):
    folder, page = masked_report
    assert page.sources and all(s.startswith("data:image/png") for s in page.sources)
    outside = {link for link in page.links if not link[1].startswith(("#", "data:"))}
    assert outside == {("a", document.PAPER)}
    text = (folder / "report.html").read_text("utf-8")
    for word in ("<link", "@import", "url(http", "<iframe", "@font-face", "fetch("):
        assert word not in text
    assert "default-src 'none'" in text  # nor may it ask for anything
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_downloads_in_the_page_are_the_files(masked_report):
    folder, page = masked_report
    inside = [link for _, link in page.links if link.startswith("data:text/csv")]
    contents = {base64.b64decode(link.partition(",")[2]) for link in inside}
    names = ("identifiability", "updates", "rate", "summary", "tests", *SPREADS)
    assert contents == {(folder / f"figures/{name}.csv").read_bytes() for name in names}


def test_csv_numbers(masked_run, masked_report):
    run, folder, count = masked_run, masked_report[0] / "figures", 5
    rows = table(folder / "identifiability.csv")
    ranks = run["rank_residual"][:]
    for tokens, part in (("cls", ranks[..., 0]), ("image", ranks[..., 1:].mean(-1))):
        means = [float(r["mean"]) for r in rows if r["tokens"] == tokens]
        np.testing.assert_allclose(means, 1 - part.mean(0) / count, atol=1e-6)
    rates = [
        float(r["mean"]) for r in table(folder / "rate.csv") if r["tokens"] == "image"
    ]
    np.testing.assert_allclose(rates, (ranks[..., 1:] == 0).mean((0, 2)), atol=1e-6)
    rows = table(folder / "updates.csv")
    assert {row["stream"] for row in rows} == {"attention_update", "mlp_update"}
    ranks = run["rank_mlp_update"][..., 0]
    keys = {"stream": "mlp_update", "tokens": "cls"}
    means = [float(r["mean"]) for r in rows if keys.items() <= r.items()]
    np.testing.assert_allclose(means, 1 - ranks.mean(0) / count, atol=1e-6)
    for row in table(folder / "maps.csv"):
        place = int(row["row"]) * 4 + int(row["column"]) + 1
        rank = run["rank_residual"][int(row["image"]), int(row["layer"]), place]
        assert int(row["rank"]) == rank
        assert float(row["identifiability"]) == pytest.approx(1 - rank / count)
    accuracy = (run["prediction"][:] == run["label"][:]).mean()
    rows = {row["quantity"]: row for row in table(folder / "summary.csv")}
    assert float(rows["top-1 accuracy"]["value"]) == pytest.approx(accuracy)


def test_fractions_only(masked_report):
    for path in (masked_report[0] / "figures").glob("*.csv"):
        for row in table(path):
            keys = ("mean", "low", "high", "q25", "q75", "chance", "identifiability")
            for key in set(keys) & set(row):
                assert row[key] == "" or -1 <= float(row[key]) <= 1


def test_the_page_says_what_was_run(make_run, tmp_path):
    words = report([make_run()], tmp_path).words
    for part in (
        "vit_test on folder:photos",
        "0123456789abcdef" * 4,
        "sha256:feed",
        "9 of 9 done, 9 used",
        "float32",
        "jax 0.10.2",
        "31.5",
        "platform cpu, count 2",
        "image 1 file 1.jpg",
        "1 − rank / C",
        "Vilas et al. 2023",
    ):
        assert part in words
    assert "artial run" not in words and "skipped" not in words


def test_partial_run(make_run, tmp_path):
    done = np.arange(9) < 4
    run = make_run(
        change={"done": done, "valid": done}, manifest={"finished": None}, masks=True
    )
    assert "partial run, 4 of 9 images" in report([run], tmp_path).words


def test_a_page_is_not_made_of_rows_that_are_gone(make_run, tmp_path):
    run = make_run()
    lost = pathlib.Path(run.path) / "rows.zarr/rank_mlp_update/c/1/0/0"
    lost.unlink()
    with pytest.raises(DamageError, match="of rank_mlp_update in .* images 4 to 7. "):
        document.write_report([run], tmp_path)
    assert not list(tmp_path.rglob("report.html"))


def test_skipped_images_are_named(make_run, tmp_path):
    valid = np.arange(9) != 3
    skipped = [{"index": 3, "name": "<b>broken</b>.jpg", "reason": "truncated & short"}]
    run = make_run(change={"valid": valid}, manifest={"skipped": skipped})
    words = report([run], tmp_path).words
    assert "1 of 9 images skipped" in words
    assert "<b>broken</b>.jpg" in words and "truncated & short" in words


def test_some_or_no_labels(make_run, tmp_path):
    label = make_run()["label"][:]
    label[:2] = -1
    run = make_run(change={"label": label})
    assert "2 of 9 images without a label" in report([run], tmp_path).words
    run = make_run(change={"label": np.full(9, -1, np.int32)})
    page = report([run], tmp_path / "none")
    assert "no labels." in page.words and "nan" not in page.words.lower().split()
    files = {p.name for p in (tmp_path / "none/out/figures").iterdir()}
    assert files == {"summary.csv"} and len(page.sources) == 2


@pytest.mark.parametrize(
    "case",
    [
        {"fields": {"depth": 1}, "images": 1},
        {"classes": 1},
        {"pictures": 0},
        {"fields": {"image_size": (8, 32)}, "masks": True},
        {"fields": {"depth": 26}, "images": 3},
        {"fields": {"class_token": False, "norm": "residual_post"}},
        {"fields": {"registers": 4}, "masks": True},
    ],
    ids=str,
)
def test_edge_cases(make_run, tmp_path, case):
    page = report([make_run(**case)], tmp_path)
    assert "In numbers" in page.words and "nan" not in page.words.lower().split()
    no_cls = "no [CLS] token" in page.words
    assert no_cls == (case.get("fields", {}).get("class_token") is False)


@pytest.mark.parametrize("flag", ["done", "valid"])
def test_nothing_usable(make_run, tmp_path, flag):
    run = make_run(change={flag: np.zeros(9, bool)})
    assert "no images." in report([run], tmp_path).words


def test_runs_side_by_side(make_run, tmp_path):
    deep = {"model": {"name": "vit_deep"}}
    runs = [make_run(), make_run(fields={"depth": 5}, manifest=deep, seed=1)]
    page = report(runs, tmp_path)
    rows = table(tmp_path / "out/figures/rate.csv")
    assert {row["run"] for row in rows} == {"vit_test", "vit_deep"}
    assert "vit_test, vit_deep on folder:photos" in page.words
    assert "fractions of it" in page.words
    # One picture per image for both runs, and a strip of maps for each.
    assert len(page.sources) == 2 * (1 + 3 + 5)


def test_run_names():
    def manifest(name="vit", spec="folder:a", checkpoint="w.npz", **more):
        model = {"name": name, "checkpoint": checkpoint, "sha256": more.pop("sha", "")}
        return {"model": model, "data": {"spec": spec}, "dtype": "float32", **more}

    names = document.run_names
    assert names([manifest()]) == ["vit"]
    assert names([manifest(), manifest("other")]) == ["vit", "other"]
    pair = [manifest(spec="folder:/data/a"), manifest(spec="textured_digits:test")]
    assert names(pair) == ["vit · a", "vit · textured_digits:test"]
    pair = [manifest(), manifest(dtype="bfloat16")]
    assert names(pair) == ["vit · float32", "vit · bfloat16"]
    pair = [manifest(), manifest(checkpoint="/x/v.npz")]
    assert names(pair) == ["vit · w.npz", "vit · v.npz"]
    assert names([manifest(), manifest()]) == ["vit (1)", "vit (2)"]


def test_above_chance(make_run, tmp_path):
    ranks = np.full((9, 4, 17), 4, np.int32)  # always last: below chance
    ranks[:, 2:, 0] = 0  # [CLS] first from block 3 on
    ranks[:, 1, 0] = 0  # and in block 2
    ranks[:4, 2, 0] = 4  # but less surely in block 3: mean 0.64, chance 0.6
    run = make_run(fields={"depth": 4}, change={"rank_residual": ranks})
    reduced = digest(run)
    rows = reduction.curve_table(reduced, run="a")
    found = document._above_chance("a", reduced, rows)
    assert found == {"name": "a", "cells": {"cls": 4, "image": None}}


def test_same_rows_same_report(masked_run, masked_report, tmp_path):
    report([masked_run], tmp_path)
    for path in sorted(masked_report[0].rglob("*.*")):
        again = tmp_path / "out" / path.relative_to(masked_report[0])
        assert again.read_bytes() == path.read_bytes(), path.name


def test_no_run(tmp_path):
    with pytest.raises(ValueError, match="at least one run"):
        document.write_report([], tmp_path)


def test_real_run(real_run, tmp_path):
    """The published code's ranks of real photos: the page quotes its numbers."""
    words = report([real_run], tmp_path).words
    for number in ("0.708", "0.056", "0.750", "0.5005"):
        assert number in words
    assert json.loads(json.dumps(real_run.manifest))["model"]["name"] in words


def test_importing_stays_light():
    import subprocess
    import sys

    code = """import sys, vitjax
before = set(sys.modules)
import vitjax.report.document
print(sorted(set(sys.modules) - before))"""
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "vitjax.report.document" in loaded
    for heavy in ("matplotlib", "jinja2", "PIL", "tensorstore", "scipy"):
        assert f"'{heavy}'" not in loaded
