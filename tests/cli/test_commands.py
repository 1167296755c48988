"""Commands do what they say; failures are one paragraph and no traceback."""

import dataclasses
import json
import math
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

import vitjax
from vitjax.benchmark.bench import Benchmark, Timing
from vitjax.checkpoints import loading
from vitjax.checkpoints.registry import VARIANTS
from vitjax.cli.explain import Explain, photo_of
from vitjax.cli.main import enable_compilation_cache
from vitjax.cli.models import NUMBERS, count_parameters
from vitjax.cli.neurons import Neurons
from vitjax.cli.run import Run
from vitjax.data.textured_digits import CLASSES
from vitjax.models.model import parameter_shapes
from vitjax.runner import loop
from vitjax.runner.interrupt import Terminated
from vitjax.runner.options import RunOptions
from vitjax.runner.store import StorageError
from vitjax.runner.writer import RunWriter


def test_run_writes_rows_and_prints_where(run, tmp_path):
    out = tmp_path / "my rows"
    output = run(out)
    assert output.status == 0
    assert f"{out}: 12 images" in output.out
    assert f"vitjax report '{out}'" in output.out
    assert "12/12 images" in output.err
    assert vitjax.open_results(out)["done"].values.all()
    output = run(out, "--json")  # finished: returns at once
    assert "12/12" not in output.err
    assert output.json["path"] == str(out) and output.json["finished"]


def test_commands_are_callable_from_python(converted, tmp_path):
    command = Run(
        recipe="identifiability",
        model=converted,
        data="textured_digits",
        out=str(tmp_path),
        options=RunOptions(limit=4, batch_size=4),
        recipe_options={"top": 3},
    )
    results = command()
    assert results["top_classes"].shape == (4, 2, 3)
    assert results.manifest["recipe_options"] == {"top": 3}


def test_processes_share_a_run(run, tmp_path):
    flags = ["--distributed", "--processes", "2", "--process"]
    assert "12 images, 4 of them are pending" in run(tmp_path, *flags, "0").out
    assert run(tmp_path, *flags, "1")[:2] == (0, "")  # process 0 prints
    assert vitjax.open_results(tmp_path)["done"].values.all()
    assert run(tmp_path, *flags, "2").status == 1


@pytest.mark.slow
def test_random_weights_are_the_papers_control(run, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr("vitjax.runner.loop.run", lambda *a, **o: calls.append(a))
    flags = ["--random-init", "3", "--distributed", "--process=1", "--processes=2"]
    assert run(tmp_path, *flags, model="vit_ti16").status == 0
    assert "random weights, seed 3" in calls[0][1].provenance.path
    output = run(tmp_path, *flags, "--checkpoint", "x.npz", model="vit_ti16")
    assert output.status == 1 and "--random-init" in output.err


def test_list_has_every_model(call):
    lines = [line.split() for line in call("list").out.splitlines()]
    names = [line[0] for line in lines[1:]]
    assert names == list(vitjax.list_models())
    columns = lines[1 + names.index("vit_ti16")]
    assert columns[:5] == ["vit_ti16", "5,717,416", "224x224", "197", "1,000"]
    rows = call("list", "--json").json
    assert [row["model"] for row in rows] == names
    numbers = [rows[names.index("vit_ti16")][key] for key in NUMBERS]
    assert numbers == [5_717_416, "224x224", 197, 1000]


def test_list_of_one_model_says_where_its_settings_come_from(call, converted, tmp_path):
    file = tmp_path / "p.json"
    file.write_text('{"mean": [0.25, 0.5, 0.75]}')
    for words, mean, source in (
        (["vit_b16_miil"], [0, 0, 0], "row vit_b16_miil"),
        ([converted], [0.5, 0.5, 0.5], "file config.json"),
        ([converted, "--preprocess", file], [0.25, 0.5, 0.75], "you"),
        ([converted, "--preprocess", '{"mean": 0}'], [0, 0, 0], "you"),
    ):
        facts = {f["setting"]: f for f in call("list", *words, "--json").json}
        assert (facts["mean"]["value"], facts["mean"]["source"]) == (mean, source)
        assert {"deviation", "geometry", "epsilon", "GELU"} < set(facts)
    for flag in (["--preprocess", "{"], ["--preprocess", "[]"], ["--weights", "ema"]):
        output = call("list", converted, *flag)
        assert output.status == 1 and output.err.startswith("vitjax: ")


ENCODERS = (
    *("clip_b32_openai", "siglip_b16", "siglip_so400m14_384", "dinov2_g14_reg"),
    *("dinov2_s14", "mae_b16", "mae_b16_in1k", "clip_b16_openai_in1k"),
)


@pytest.mark.parametrize(
    "name", ["textured_digits", "deit_ti16", "vit_b16_gap", *ENCODERS]
)
def test_list_counts_parameters_as_the_model_has_them(name):
    row = VARIANTS[name]
    shapes = parameter_shapes(row.config, len(row.labels()[0]))
    assert count_parameters(row) == sum(map(math.prod, shapes.values()))


def test_convert_writes_a_folder_that_loads(call, converted, tiny, tmp_path):
    out = tmp_path / "copy"
    output = call("convert", converted, "--out", out, "--json")
    assert output.json["dtype"] == "float32"
    copy = vitjax.load(out)
    images = np.zeros((1, 64, 64, 3), np.float32)
    expected, _ = vitjax.forward(tiny, images)
    np.testing.assert_array_equal(vitjax.forward(copy, images)[0], expected)
    assert copy.classes == CLASSES
    for source, hint in (out / "model.safetensors", "--model"), ("vit_b61", "vit_b16"):
        output = call("convert", source)
        assert output.status == 1 and hint in output.err


def test_bench_prints_and_writes(call, converted, images, tmp_path, monkeypatch):
    timing = Timing(400.0, 0.01, 1.25, 1.1, 0.5, 2**20, 2**21, None)
    programs = dict.fromkeys(("forward", "identifiability", "one_pass"), timing)
    words = dict.fromkeys(("model", "dtype", "matmul_precision", "device"), "x")
    result = Benchmark(
        batch_size=4, versions={}, repetitions=1, programs=programs, **words
    )
    monkeypatch.setattr("vitjax.cli.bench.bench", lambda model, **options: result)
    out = tmp_path / "figures" / "bench.json"
    words = ["bench", "--model", converted, "--batch-size", "4", "--out", out]
    output = call(*words, "--data", f"folder:{images}")
    assert "relative cost" in output.out and "MAC ratio" in output.out
    figures = json.loads(out.read_text())
    forward = figures["programs"]["forward"]
    assert forward["passes"] == 1.25 and forward["device_peak_bytes"] is None
    assert figures["data"]["images_per_second"] > 0
    assert "| `one_pass`  " in out.with_suffix(".md").read_text()
    output = call(*words, "--platform", "tpu")
    assert output.status == 1 and "tpu" in output.err


def test_estimate_is_a_sentence_or_json(call, converted):
    words = ["estimate", "identifiability", "--model", converted, "--batch-size", "8"]
    words += ["--data", "textured_digits", "--limit", "8"]
    assert "Estimated for 8 images in batches of 8" in call(*words).out
    facts = call(*words, "--json").json
    assert facts["images"] == 8 and facts["device_bytes"] > 0 < facts["disk_bytes"]


@pytest.mark.parametrize("system", ["mlp", "attention"])
def test_neurons_are_those_with_the_largest_logits(system, converted, tiny):
    rows = Neurons(model=converted, system=system, layers=(0, -1), count=4, classes=3)()
    assert [row.layer for row in rows] == [0] * 4 + [1] * 4
    values = np.asarray(vitjax.memory_values(tiny)[system])
    embedding = np.asarray(tiny.class_space.embedding)
    for row in rows:
        logits = embedding @ values[row.layer, row.memory]
        best = np.argsort(-logits)[:3]
        assert row.classes == tuple(CLASSES[c] for c in best)
        np.testing.assert_allclose(row.logits, logits[best], atol=1e-5)
        assert row.head == (row.memory // 8 if system == "attention" else None)
    strongest = np.argsort(-(values[1] @ embedding.T).max(1))[:4]
    assert [row.memory for row in rows[4:]] == strongest.tolist()


def test_neurons_are_printed_and_written(call, converted, tmp_path):
    out = tmp_path / "neurons.csv"
    words = ["neurons", "--model", converted, "--memories", "5,2"]
    lines = [line.split() for line in call(*words, "--out", out).out.splitlines()]
    assert [line[:2] for line in lines[1:]] == [["0", "5"], ["0", "2"]]
    rows = out.read_text().splitlines()
    assert rows[0] == "system,layer,memory,head,class,logit" and len(rows) == 11
    assert call(*words, "--json").json[0]["memory"] == 5
    for flags in ["--blocks", "2"], ["--memories", "99"], ["--classes", "11"]:
        output = call(*words[:3], *flags)
        assert output.status == 1 and flags[0][2:] in output.err


def test_explain_draws_and_writes_maps(call, converted, tiny, images, tmp_path):
    paths = [str(images / name / "a.png") for name in ("zero", "seven")]
    words = ["explain", *paths, "--model", converted, "--out", tmp_path]
    flags = ["--class", "3", "--method", "legrad,raw_attention", "--blocks", "1"]
    facts = call(*words, *flags, "--json").json
    assert facts["methods"] == ["legrad", "raw_attention"]
    assert {row["class"] for row in facts["pictures"]} == {"three"}
    assert all(0 < row["probability"] < 1 for row in facts["pictures"])
    with Image.open(tmp_path / "explain.png") as figure:
        assert figure.width > 100
    preprocess = vitjax.Preprocess(64, 64)
    pixels = np.stack([preprocess(Image.open(path)) for path in paths])
    expected = vitjax.explain(tiny, pixels, 3, method="legrad", layers=(1,))
    with np.load(tmp_path / "explain.npz") as arrays:
        assert arrays["target"].tolist() == [3, 3]
        maps = arrays["map_legrad"].reshape(2, -1)
        np.testing.assert_allclose(maps, expected, rtol=1e-3, atol=1e-7)
    text = call(*words, "--method", "raw_attention").out  # of the prediction
    assert text.count("a.png: for ") == text.count(", the prediction") == 2


def test_explain_several_classes_in_several_formats(converted, tiny, images, tmp_path):
    paths = tuple(str(images / name / "a.png") for name in ("zero", "one", "two"))
    command = Explain(
        images=paths,
        model=converted,
        class_=("three", "eight", "3"),
        method=("raw_attention",),
        format=("pdf", "svg"),
        width=4.0,
        out=tmp_path,
    )
    arrays = command()
    assert arrays["target"].tolist() == [[3, 8]] * 3
    assert arrays["map_raw_attention"].shape == (3, 2, 4, 4)
    assert arrays["probability"].shape == (3, 2) and arrays["names"].shape == (3,)
    assert {path.name for path in tmp_path.glob("explain*")} == {
        "explain.pdf",
        "explain.svg",
        "explain.npz",
    }
    single = dataclasses.replace(command, class_=("three",))()
    assert single["map_raw_attention"].shape == (3, 4, 4)


@pytest.mark.parametrize(
    ("grid", "shape"), [("blocks", (1, 2)), ("heads", (1, 2, 1)), (None, (1,))]
)
def test_a_grid_shows_maps_of_blocks_and_heads(
    grid, shape, converted, tiny, images, tmp_path
):
    path = str(images / "zero" / "a.png")
    options = {"method": ("relevancy",), "heads": (-1,), "grid": grid, "class_": ("3",)}
    arrays = Explain(images=(path,), model=converted, out=tmp_path, **options)()
    actual = arrays["map_relevancy"]
    assert actual.shape == (*shape, 4, 4)
    pixels = vitjax.Preprocess(64, 64)(Image.open(path))[None]
    expected = np.asarray(vitjax.relevancy(tiny, pixels, np.array([3])))[:, 0, 1, 1:]
    total = actual.reshape(-1, 2 if grid else 1, 16).sum(0)
    expected = expected if grid else expected.sum(0, keepdims=True)
    np.testing.assert_allclose(total, expected, rtol=1e-3, atol=1e-6)
    if grid:
        assert arrays["heads"].tolist() == [1] and arrays["blocks"].tolist() == [0, 1]
        with pytest.raises(ValueError, match="libragrad"):
            Explain(images=(path,), model=converted, out=tmp_path, grid=grid)()


def test_explain_refuses_what_it_cannot_read(call, converted, images, tmp_path):
    rest = ["--model", converted, "--out", tmp_path / "out"]
    path, odd = images / "zero" / "a.png", tmp_path / os.fsdecode(b"latin1-\xe9.png")
    shutil.copy(path, odd)
    assert "latin1-\\xe9.png: for" in call("explain", odd, *rest).out
    os.mkfifo(tmp_path / "pipe.png")
    Image.new("F", (9, 9), float("nan")).save(tmp_path / "nan.tif")
    for name, flags, hint in (
        (tmp_path / "pipe.png", [], "regular"),
        (tmp_path / "nan.tif", [], "NaN"),
        (tmp_path / "x.png", [], "no such"),
        (path, ["--method", "chefer", "--heads", "0"], "chefer"),
        (path, ["--class", "eigth"], "eight"),
    ):
        output = call("explain", name, *rest, *flags)
        assert output.status == 1 and hint in output.err
        assert flags or name.name in output.err


@pytest.mark.parametrize(
    ("resize", "size", "shape"),
    [
        ("squash", (90, 60), (60, 90)),
        ("squash", (2048, 1024), (256, 512)),
        ("shorter", (90, 60), (38, 38)),  # 60 pixels were resized to 50
        ("shorter", (200, 100), (64, 64)),
        ("square", (2000, 1000), (512, 512)),
    ],
)
def test_photos_are_neither_squashed_nor_enlarged(resize, size, shape):
    preprocess = vitjax.Preprocess(32, 32, resize=resize, resize_size=50)
    assert photo_of(Image.new("RGB", size), preprocess).shape == (*shape, 3)


@pytest.mark.slow
def test_look_needs_no_labels(call, converted, images, tmp_path, monkeypatch):
    pages = []
    monkeypatch.setattr("webbrowser.open", pages.append)
    out, photo = tmp_path / "look", images / "one" / "a.png"
    words = ["look", images, photo, "--model", converted, "--out", out]
    facts = call(*words, "--json", "--open").json
    page = pathlib.Path(facts["report"])
    assert pages == [page.as_uri()] and page == out / "report.html"
    results = vitjax.open_results(facts["rows"])
    assert len(facts["pictures"]) == results.sizes["image"] == 11
    assert (results["label"] == -1).all()
    # Its own prediction has rank 0 at the end.
    assert (results["rank_residual"][:, -1, 0] == 0).all()
    text = page.read_text("utf8")
    assert "explorer-0-10" in text and "a.png" in text
    call(*words, "--class", "three")  # another run, the same folder
    labeled = [vitjax.open_results(path) for path in out.glob("rows-*")]
    assert sorted(int(run["label"][0]) for run in labeled) == [-1, 3]
    output = call("look", tmp_path / "no.png", *words[3:])
    assert output.status == 1 and "no.png" in output.err


def assert_one_paragraph(output, *hints):
    assert output.status == 1 and "Traceback" not in output.err
    lines = output.err.splitlines()
    lines = [x for x in lines if "images," not in x and x[:5] != "mean "]
    assert len(lines) == 1 and lines[0].startswith("vitjax: "), output.err
    assert all(hint in lines[0] for hint in hints), output.err


@pytest.mark.parametrize(
    ("flags", "hint"),
    [
        (["--model", "vit_xxl"], "vit_xxl"),
        (["--model", "vit_ti16", "--checkpoint", "/nowhere.npz"], "/nowhere.npz"),
        (["--data", "folder:/nowhere"], "/nowhere"),
        (["--data", "pictures"], "pictures"),
        (["--data", "folders:x"], "folder"),
        (["--data", "textured_digits:x"], "'x'"),
        (["--out", "/proc/nothing/run"], "/proc/nothing/run"),
    ],
)
def test_a_failure_is_one_paragraph(run, tmp_path, flags, hint):
    output = run(tmp_path, *flags)
    assert_one_paragraph(output, hint)
    assert output.out == ""
    output = run(tmp_path, *flags, "--traceback")
    assert "Traceback" in output.err and hint in output.err


@pytest.mark.parametrize("command", ["neurons", "bench"])
def test_folders_that_cannot_be_made_are_refused_before_the_work(
    command, call, tmp_path, monkeypatch
):
    monkeypatch.setattr(loading, "load", None)
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "results"
    output = call(command, "--model", "textured_digits", "--out", out)
    assert_one_paragraph(output, str(tmp_path / "file"))


def test_report_says_what_it_needs(call, tmp_path):
    assert_one_paragraph(call("report"), "at least one run")
    assert_one_paragraph(call("report", tmp_path), "manifest.json")
    assert_one_paragraph(call("report", tmp_path, "--subset", "0"), "subset=0")


def test_a_class_file_gives_an_encoder_its_classes(
    run, tiny, images, tmp_path, monkeypatch
):
    """Labels are matched against its names, whatever their order and case."""
    folder, file = str(tmp_path / "encoder"), str(tmp_path / "classes.npz")
    config = dataclasses.replace(tiny.config, projection=6, head="cosine")
    encoder = vitjax.init(config, classes=CLASSES)
    head = encoder.params["head"] | {"kernel": np.zeros((6, 0)), "bias": np.zeros(0)}
    params = {**encoder.params, "head": head}
    loading.save(encoder.replace(params=params, classes=(), class_ids=()), folder)
    names = [name.upper() for name in reversed(CLASSES)]
    rows = np.random.default_rng(0).normal(size=(10, 6)).astype(np.float32)
    np.savez(file, embeddings=rows, classes=names)
    jobs, data = [], f"folder:{images}"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "resume", lambda job, show: jobs.append(job))
        run(tmp_path / "run", "--classes", file, data=data, model=folder)
    (job,) = jobs
    assert list(job.model.classes) == names
    labels = [names.index(name.upper()) for name in sorted(CLASSES)]
    assert [job.source[index].label for index in range(10)] == labels
    neurons = Neurons(model=folder, class_names=file, count=1, classes=10)()
    assert sorted(neurons[0].classes) == sorted(names)
    np.savez(file, embeddings=rows[:9], classes=names[:-1])  # no ZERO
    output = run(tmp_path / "other", "--classes", file, data=data, model=folder)
    assert_one_paragraph(output, "label 'zero'")


def test_a_broken_image_is_named_or_skipped(run, images, tmp_path):
    (images / "zero/a.png").write_bytes(b"no image")
    output = run(tmp_path / "run", data=f"folder:{images}")
    hints = "zero/a.png", "of 10 images are done", "--on-error skip"
    assert_one_paragraph(output, *hints)
    output = run(tmp_path / "run", "--on-error", "skip", data=f"folder:{images}")
    assert "1 of them could not be read" in output.out


@pytest.mark.parametrize(
    ("error", "status", "hint"),
    [
        (KeyboardInterrupt(), 130, "Stopped. 0 of 12 images are done"),
        (Terminated(), 143, "Stopped. 0 of 12 images are done"),
        (StorageError("No space left on device."), 1, "left on device. 0 of 12 images"),
        (MemoryError("Unable to allocate 7 TiB"), 1, "--batch-size"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_run_that_ends_early_says_why_and_how_to_resume(
    run, converted, tmp_path, monkeypatch, error, status, hint
):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(RunWriter, "write_chunk", fail)
    output = run(tmp_path / "my run")
    assert output.status == status and "Traceback" not in output.err
    assert hint in output.err and "resumes" in output.err
    if status == 1:
        assert_one_paragraph(output)
    else:
        assert f"  vitjax run identifiability --model {converted}" in output.err
        assert f"--out '{tmp_path / 'my run'}'" in output.err


def test_a_disk_that_is_full_before_there_are_rows_is_one_paragraph(
    run, tmp_path, monkeypatch
):
    create, names = RunWriter.create_arrays, []

    def fill_up(writer):  # on the way, the disk is full
        writer.specs = dict(list(writer.specs.items())[:3])
        names.extend(writer.specs)
        create(writer)
        raise StorageError("No space left on device.")

    monkeypatch.setattr(RunWriter, "create_arrays", fill_up)
    output = run(tmp_path / "rows")
    assert output.status == 1 and "done" not in names
    assert_one_paragraph(output)
    assert "What was written" in output.err


def test_compiled_programs_are_cached_unless_the_user_chose_a_folder(
    tmp_path, monkeypatch
):
    chosen = jax.config.jax_compilation_cache_dir  # by this session's environment
    enable_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == chosen
    (tmp_path / "file").touch()
    folder = tmp_path / "compiled"
    try:
        for cache, expected in ("", str(folder)), ("file", None):
            jax.config.update("jax_compilation_cache_dir", None)
            monkeypatch.setenv("VITJAX_CACHE", str(tmp_path / cache))
            enable_compilation_cache()
            assert jax.config.jax_compilation_cache_dir == expected
    finally:
        jax.config.update("jax_compilation_cache_dir", chosen)
    assert folder.is_dir()
