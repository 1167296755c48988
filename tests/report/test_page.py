"""The page of a report, its files, and the same as objects of a vitjax."""

import base64
import html
import html.parser
import json
import re

import numpy as np
import pytest
from fake_runs import STUDY, fake_run
from PIL import Image

import vitjax
from vitjax.recipes.registry import RECIPES
from vitjax.report import page
from vitjax.report.explorer import explorer_data
from vitjax.report.per_image import as_runs

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(html.parser.HTMLParser):
    """Checks that tags close in order; collects what the page refers to and says."""

    def __init__(self, text):
        super().__init__()
        self.open, self.links, self.sources, self.text = [], [], [], []
        self.ids = []
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
            if name == "id":
                self.ids.append(value)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


def words_of(*results):
    """What the page says besides its sections."""
    return Page(page.render_page(as_runs(results), (), {})).words


@pytest.fixture(scope="module")
def masked_run():
    return fake_run(images=20, masks=True)


@pytest.fixture(scope="module")
def report(masked_run, tmp_path_factory):
    """(folder, page) of a report on one run with masks."""
    folder = tmp_path_factory.mktemp("report")
    path = page.write_report([masked_run], folder)
    assert path == folder / "report.html"
    return folder, Page(path.read_text("utf-8"))


def test_files_are_the_figures_and_tables_by_name(report, masked_run):
    folder = report[0] / "figures"
    figures, tables = vitjax.figures(masked_run), vitjax.tables(masked_run)
    assert {"identifiability", "updates", "rate", "maps", "context_boxes"} <= {*figures}
    assert {"summary", "tests"} <= {*tables}
    expected = {f"{key}.csv" for key in (*figures, *tables)}
    expected |= {f"{key}.png" for key in figures}
    assert {path.name for path in folder.iterdir()} == expected
    for path in folder.glob("*.png"):
        Image.open(path).verify()


def test_the_page_needs_nothing_else(report):
    folder, parsed = report
    assert parsed.sources
    assert all(source.startswith("data:image/png") for source in parsed.sources)
    outside = {link for link in parsed.links if not link[1].startswith(("#", "data:"))}
    assert outside == {("a", "https://arxiv.org/abs/2310.18969")}
    text = (folder / "report.html").read_text("utf-8")
    for word in ("<link", "@import", "url(http", "<iframe", "@font-face", "fetch("):
        assert word not in text
    assert "default-src 'none'" in text  # nor may it ask for anything
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text


def test_downloads_in_the_page_are_the_files(report):
    folder, parsed = report
    pictures = {"maps"}
    inside = [link for _, link in parsed.links if link.startswith("data:text/csv")]
    contents = {base64.b64decode(link.partition(",")[2]) for link in inside}
    files = {
        p.read_bytes() for p in folder.glob("figures/*.csv") if p.stem not in pictures
    }
    assert contents == files


def test_same_rows_same_report(masked_run, report):
    runs = as_runs(masked_run)
    again = page.render_page(runs, page.sections(runs), explorer_data(runs))
    assert (report[0] / "report.html").read_text("utf-8") == again


@pytest.mark.parametrize(
    "case",
    [
        {"depth": 1, "images": 1, "class_token": False, "norm": "residual_post"},
        {"classes": 1, "previews": 0},
        {"image_size": (8, 32), "registers": 4, "masks": True},
    ],
    ids=str,
)
def test_edge_cases(case):
    runs = as_runs(fake_run(**case))
    words = Page(page.render_page(runs, page.sections(runs), {})).words
    assert "What was found" in words and "nan" not in words.lower().split()
    assert ("no [CLS] token" in words) == (case.get("class_token") is False)


@pytest.mark.slow
def test_runs_side_by_side(tmp_path):
    deep = fake_run(depth=5, seed=1, manifest={"model": {"name": "vit_deep"}})
    tokens = fake_run("tokens")
    path = page.write_report([fake_run(), tokens, deep], tmp_path, names="abc")
    parsed = Page(path.read_text("utf-8"))
    assert "a, c on folder:photos" in parsed.words
    assert parsed.words.count("recipe identifiability") == 2
    assert "recipe tokens" not in parsed.words
    assert '"probabilities"' in path.read_text("utf-8")


def test_the_page_says_what_was_run():
    words = words_of(fake_run())
    for part in (
        "vit_test on folder:photos",
        "0123456789abcdef" * 4,
        "sha256:feed",
        "9 of 9 done, 9 used",
        "jax 0.10.2",
        "1 − rank / C",
        "Vilas et al. 2023",
    ):
        assert part in words
    for part in ("partial run", "skipped", "without", "degenerate", "no labels"):
        assert part not in words


SKIPPED = {"index": 3, "name": "<b>broken</b>.jpg", "reason": "truncated & short"}
NONE, UNKNOWN = np.zeros(9, bool), np.full(9, -1, np.int32)
NOTICES = {
    "partial run, 4 of 9 images": ({"done": np.arange(9) < 4}, {"finished": None}),
    "1 of 9 images skipped": ({"valid": np.arange(9) != 3}, {"skipped": [SKIPPED]}),
    "<b>broken</b>.jpg truncated & short": ({}, {"skipped": [SKIPPED]}),
    "1 of 9 images without object tokens": ({}, {"no_object_tokens": [SKIPPED]}),
    "2 of 9 images without a label": ({"label": np.arange(9) % 5 - 1}, {}),
    "no labels": ({"label": UNKNOWN}, {}),
    "no images": ({"done": NONE}, {}),
    "9 of 9 images skipped": ({"valid": NONE}, {}),
    "degenerate control": ({}, {"model": {"checkpoint": "random weights, seed 0"}}),
}


@pytest.mark.parametrize("notice", NOTICES)
def test_what_limits_a_run_is_said(notice):
    change, manifest = NOTICES[notice]
    run = fake_run(change=change, manifest=manifest, norm="residual_post")
    assert notice in words_of(run)


@pytest.mark.parametrize(
    "recipe, change, drawn",
    [
        ("identifiability", {"done": NONE}, set()),
        ("identifiability", {"label": UNKNOWN}, {"photos", "settling"}),
        ("tokens", {"label": UNKNOWN}, {"photos", "settling"}),
        ("ablation", {"label": UNKNOWN}, set()),
    ],
)
def test_what_needs_no_label_is_drawn(tmp_path, recipe, change, drawn):
    path = page.write_report([fake_run(recipe, change=change)], tmp_path)
    parsed = Page(path.read_text("utf-8"))
    assert "nan" not in parsed.words.lower().split()
    assert {path.stem for path in tmp_path.rglob("*.png")} == drawn
    if drawn:
        assert "no labels" in parsed.words and "table-predictions" in parsed.ids


@pytest.mark.parametrize("recipe", RECIPES)
def test_contents_and_the_order_of_sections(recipe):
    options = {"masks": True, "manifest": {"study": STUDY}}
    results = [fake_run(recipe, **options)]
    # Alone, its page is that of `one_pass`.
    results += [fake_run(depth=2, class_token=False)] if recipe == "paper" else []
    runs = as_runs(results)
    made = page.sections(runs)
    assert not any("nan" in line for each in made for line in each.sentences)
    text = page.render_page(runs, made, explorer_data(runs))
    parsed = Page(text)
    assert len(parsed.ids) == len(set(parsed.ids))
    anchors = [link[1:] for tag, link in parsed.links if tag == "a" and link[0] == "#"]
    assert set(anchors) <= set(parsed.ids)
    top = [key for key in anchors if "-" not in key]
    assert [key for key in parsed.ids if key in top] == top
    ends = ["tests", "tables", "measured", "computed"]
    assert top[0] == "found" and [key for key in top if key in ends][-2:] == ends[-2:]
    assert top[-len(set(ends) & set(top)) :] == [key for key in ends if key in top]
    if "explorer" in top:
        pictures = ["faithfulness"] if recipe == "faithfulness" else []
        assert top[1 : 3 + len(pictures)] == [*pictures, "explorer", "maps"]


def test_no_page_is_left_if_rows_cannot_be_read(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("rows of rank_mlp_update are gone")

    monkeypatch.setattr(page, "sections", fail)
    with pytest.raises(OSError, match="rank_mlp_update"):
        page.write_report([fake_run()], tmp_path)
    assert not list(tmp_path.iterdir())


def test_no_run(tmp_path):
    for function in (vitjax.figures, vitjax.tables, vitjax.explorer):
        with pytest.raises(ValueError):
            function([])
    with pytest.raises(ValueError):
        vitjax.write_report([], tmp_path)


def test_the_explorer_of_a_notebook_is_a_page_in_a_frame(masked_run):
    frame = vitjax.explorer(masked_run, height=321)._repr_html_()
    content = re.search('srcdoc="(.*?)"', frame, re.S)[1]
    inner = Page(html.unescape(content))
    assert "height:321px" in frame and "Token explorer" in inner.words
    assert "What is measured" not in inner.words
    assert "Content-Security-Policy" in content and "explorer-0-1" in content
    with pytest.raises(ValueError):
        vitjax.explorer(fake_run(previews=0))


def test_names_cannot_end_the_element_around_them():
    name = "</script></title><!--&amp;"
    runs = as_runs(fake_run(), [name])
    text = page.render_page(runs, (), explorer_data(runs))
    assert name in Page(text).words and name not in text
    data = re.search('id="explorer-data">(.*?)</script>', text)[1]
    assert not set("<>&") & set(data)
    assert json.loads(data)["runs"][0]["name"] == name
