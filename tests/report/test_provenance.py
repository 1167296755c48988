"""The end of the page: how the rows were computed."""

from vitjax.report.per_image import digest
from vitjax.report.provenance import listed, provenance


def test_what_the_manifest_does_not_say_is_left_out(masked_run):
    found = provenance(masked_run.manifest, digest(masked_run))
    pairs = found["pairs"]
    assert pairs["recipe"] == "identifiability" and pairs["classes"] == 5
    assert pairs["images"] == "20 of 20 done, 20 used"
    assert pairs["images per second"] == "31.5"
    assert not {"resumed", "parameters sha256", "class tokens"} & set(pairs)
    assert found["skipped"] == found["vanished"] == []


def test_an_unfinished_run_says_so(masked_run):
    manifest = {**masked_run.manifest, "finished": None, "resumed": ["once", "twice"]}
    pairs = provenance(manifest, digest(masked_run))["pairs"]
    assert pairs["finished"] == "not yet" and pairs["resumed"] == "once, twice"


def test_dicts_and_lists_in_a_line():
    assert listed({"a": 1, "b": None}) == "a 1, b None"
    assert listed(["x", 2]) == "x, 2" and listed(()) == ""
