"""Commands do what they say; failures are one paragraph and no traceback."""

import dataclasses
import functools
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from vitjax.runner.folder import Run
from vitjax.runner.storage import StorageError

import vitjax
from vitjax.checkpoints import loading
from vitjax.cli.bench import Estimate
from vitjax.cli.main import compilation_cache, main
from vitjax.cli.main import run as running
from vitjax.data.textured_digits import CLASSES
from vitjax.runner import estimate as estimating
from vitjax.runner import tpu_estimate
from vitjax.runner.results import open_results

TINY = vitjax.Config(64, 16, dim=16, depth=2, heads=2, mlp_dim=32)


@pytest.fixture(scope="session")
def converted(tmp_path_factory):
    """A folder that `vitjax convert` wrote; a name for --model."""
    folder = tmp_path_factory.mktemp("converted") / "tiny"
    loading.save(vitjax.init(TINY, classes=CLASSES), folder)
    return str(folder)


def run(converted, out, *more, data="textured_digits"):
    base = ["run", "identifiability", "--model", converted, "--data", data]
    small = ["--out", str(out), "--limit", "12", "--batch-size", "4"]
    return main.main([*base, *small, *more])


def test_run_writes_rows_and_says_where(converted, tmp_path, capsys):
    assert run(converted, tmp_path / "run") == 0
    shown = capsys.readouterr()
    assert f"{tmp_path / 'run'}: 12 images" in shown.out
    assert f"vitjax report {tmp_path / 'run'}" in shown.out
    assert "12/12 images" in shown.err
    assert open_results(tmp_path / "run")["done"][:].all()
    assert run(converted, tmp_path / "run") == 0  # finished: returns at once
    assert "12/12" not in capsys.readouterr().err


def test_probes_need_images_of_their_own_to_fit_on(converted, tmp_path, capsys):
    base = ["--model", converted, "--data", "textured_digits", "--out", str(tmp_path)]
    assert main.main(["run", "probes", *base]) == 1
    assert "--train SOURCE" in capsys.readouterr().err
    assert main.main(["run", "identifiability", *base, "--train", "csv:a"]) == 1
    assert "--train is of probes" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_probes_are_told_every_flag(converted, tmp_path, monkeypatch):
    told = {}

    def run_probes(model, train, data, out, **options):
        told.update(options, train=train, data=data, model=model)
        raise ValueError("told")

    monkeypatch.setattr(running, "run_probes", run_probes)
    flags = ["--train", "textured_digits:train", "--shots", "3", "--alpha", "0.5"]
    more = ["--memory", "5MiB", "--probe", "softmax", "--steps", "4", "--limit", "9"]
    base = ["--model", converted, "--data", "textured_digits", "--out", str(tmp_path)]
    assert main.main(["run", "probes", *base, *flags, *more]) == 1
    expected = {"train": "textured_digits:train", "shots": 3, "alpha": 0.5}
    expected |= {"memory": "5MiB", "probe": "softmax", "steps": 4, "limit": 9}
    assert {key: told[key] for key in expected} == expected
    assert told["model"].classes == CLASSES


def test_commands_are_callable_from_python(converted, tmp_path):
    command = main.Run(
        recipe="identifiability",
        model=converted,
        data="textured_digits",
        out=str(tmp_path),
        limit=4,
        batch_size=4,
    )
    assert command()["prediction"].shape == (4,)
    with pytest.raises(dataclasses.FrozenInstanceError):
        command.limit = 5


def test_report_goes_beside_the_rows(converted, tmp_path, capsys):
    run(converted, tmp_path / "run")
    assert main.main(["report", str(tmp_path / "run")]) == 0
    assert str(tmp_path / "run/report.html") in capsys.readouterr().out
    assert (tmp_path / "run/report.html").stat().st_size > 1000


def test_demo_prints_a_table_and_says_where_the_report_is(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    model = vitjax.init("textured_digits")
    monkeypatch.setattr(loading, "load", lambda name: model)
    assert main.main(["demo", "--images", "20"]) == 0
    shown = capsys.readouterr().out
    assert "top-1 accuracy" in shown and "95 % interval" in shown
    assert f"Report: {tmp_path / 'vitjax-demo/report.html'}" in shown
    assert (tmp_path / "vitjax-demo/report.html").exists()
    assert len(open_results(tmp_path / "vitjax-demo")["done"]) == 20


def test_list_shows_every_model(capsys):
    assert main.main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(vitjax.list_models())
    columns = lines[[line.split()[0] for line in lines].index("vit_ti16")].split()
    assert columns[:5] == ["vit_ti16", "5,717,416", "224x224", "197", "1000"]


def test_convert_writes_a_folder_that_loads(converted, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["convert", converted, "--out", "copy"]) == 0
    left, right = vitjax.load(converted), vitjax.load("copy")
    images = np.zeros((1, 64, 64, 3), np.float32)
    expected, _ = vitjax.forward(left, images)
    np.testing.assert_array_equal(vitjax.forward(right, images)[0], expected)
    assert right.classes == CLASSES
    assert "float32" in capsys.readouterr().out


def test_bench_prints_and_writes(tmp_path, capsys):
    out = tmp_path / "figures" / "bench.json"
    flags = ["--batch-size", "4", "--repetitions", "1", "--out", str(out)]
    assert main.main(["bench", "--model", "textured_digits", *flags]) == 0
    shown = capsys.readouterr().out
    assert "images/s" in shown and "plain forward passes" in shown
    figures = json.loads(out.read_text())
    assert figures["ratio"] > 0 and figures["forward"]["temporary_bytes"] > 0


FAILURES = {
    "no such model": (
        ["--model", "vit_xxl"],
        "model='vit_xxl' is not one of",
    ),
    "no such checkpoint": (
        ["--model", "vit_ti16", "--checkpoint", "/nowhere.npz"],
        "/nowhere.npz",
    ),
    "no such folder": (["--data", "folder:/nowhere"], "no folder /nowhere"),
    "no such source": (["--data", "pictures"], "'pictures' names no data set"),
    "a source misspelt": (
        ["--data", "folders:x"],
        "Did you mean folder:x?",
    ),
    "no such split": (["--data", "textured_digits:x"], "no split 'x'"),
    "batch of none": (["--batch-size", "0"], "batch_size is 0"),
    "limit of none": (["--limit", "0"], "limit is 0"),
    "below /proc": (["--out", "/proc/nothing/run"], "may write there"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_a_failure_is_one_paragraph(converted, tmp_path, capsys, name):
    flags, message = FAILURES[name]
    assert run(converted, tmp_path / "run", *flags) == 1
    shown = capsys.readouterr()
    assert_one_paragraph(shown.err, message)
    assert shown.out == ""


def assert_one_paragraph(text, message):
    progress = ("images,", "Estimated for")
    lines = text.splitlines()
    lines = [line for line in lines if not any(word in line for word in progress)]
    assert len(lines) == 1 and lines[0].startswith("vitjax: "), text
    assert message in lines[0]
    assert "Traceback" not in text and "tensorstore_spec" not in text


def test_traceback_is_there_for_who_asks(converted, tmp_path, capsys):
    flags = ["--data", "folder:/nowhere", "--traceback"]
    assert run(converted, tmp_path, *flags) == 1
    shown = capsys.readouterr().err
    assert "Traceback" in shown and "no folder /nowhere" in shown


def test_an_out_that_cannot_be_a_folder(converted, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    assert run(converted, tmp_path / "file" / "run") == 1
    assert_one_paragraph(capsys.readouterr().err, "Not a directory")


def test_a_truncated_checkpoint(converted, tmp_path, capsys):
    shutil.copytree(converted, tmp_path / "cut")
    path = tmp_path / "cut/model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    assert run(str(tmp_path / "cut"), tmp_path / "run") == 1
    assert_one_paragraph(capsys.readouterr().err, "model.safetensors")


def test_a_checkpoint_of_other_shape(converted, tmp_path, capsys):
    flags = ["--model", "vit_ti16", "--checkpoint", converted]
    assert run(converted, tmp_path / "run", *flags) == 1
    assert "vit_ti16" in capsys.readouterr().err


def test_a_folder_of_another_run(converted, tmp_path, capsys):
    assert run(converted, tmp_path) == 0
    capsys.readouterr()
    assert run(converted, tmp_path, "--limit", "8") == 1
    message = "holds another run: data.images is 12 there and 8 here"
    assert_one_paragraph(capsys.readouterr().err, message)


@pytest.fixture
def pictures(tmp_path):
    for number, name in enumerate(CLASSES):
        folder = tmp_path / "pictures" / name
        folder.mkdir(parents=True)
        Image.new("RGB", (64, 64), (number, 0, 0)).save(folder / "a.png")
    return tmp_path / "pictures"


def test_a_label_outside_the_classes(converted, pictures, tmp_path, capsys):
    (pictures / "eight").rename(pictures / "eigth")
    assert run(converted, tmp_path / "run", data=f"folder:{pictures}") == 1
    error = capsys.readouterr().err
    assert_one_paragraph(error, "'eigth'")
    assert "eight" in error  # the near match


def test_a_broken_image_names_its_file_and_skip_goes_on(
    converted, pictures, tmp_path, capsys
):
    (pictures / "zero/a.png").write_bytes(b"no picture")
    arguments = converted, tmp_path / "run"
    assert run(*arguments, data=f"folder:{pictures}") == 1
    error = capsys.readouterr().err
    assert_one_paragraph(error, "zero/a.png")
    assert "8 of 10 images are done" in error and "--on-error skip" in error
    assert run(*arguments, "--on-error", "skip", data=f"folder:{pictures}") == 0
    assert "1 of them could not be read" in capsys.readouterr().out


def test_a_full_disk_loses_nothing(converted, tmp_path, capsys, monkeypatch):
    def full(self, start, rows):
        raise StorageError("Cannot write rows: No space left on device. Make room.")

    with monkeypatch.context() as patch:
        patch.setattr(Run, "write_rows", full)
        assert run(converted, tmp_path) == 1
    error = capsys.readouterr().err
    assert_one_paragraph(error, "No space left on device")
    assert "the same command goes on" in error
    assert run(converted, tmp_path) == 0


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt, 130), (main.Terminated, 143)]
)
def test_stopped_says_how_to_go_on(
    converted, tmp_path, capsys, monkeypatch, error, status
):
    def stopped(self, part):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr("vitjax.runner.buffer.Buffer.add", stopped)
        assert run(converted, tmp_path / "my run") == status
    shown = capsys.readouterr().err
    assert "Stopped. 0 of 12 images are done" in shown and "Traceback" not in shown
    assert f"  vitjax run identifiability --model {converted}" in shown
    assert f"--out '{tmp_path / 'my run'}'" in shown


def test_out_of_memory_names_the_batch_size(converted, tmp_path, capsys, monkeypatch):
    def exhausted(self, batch):
        raise MemoryError("Unable to allocate 7 TiB")

    monkeypatch.setattr("vitjax.runner.job.Job.step", exhausted)
    assert run(converted, tmp_path) == 1
    assert_one_paragraph(capsys.readouterr().err, "smaller --batch-size")


@pytest.mark.parametrize(
    "arguments", [[], ["nothing"], ["run"], ["run", "--limit", "x"]]
)
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(arguments)
    assert caught.value.code == 2


def test_other_arguments(capsys):
    assert main.main(["--version"]) == 0
    assert capsys.readouterr().out == f"{vitjax.__version__}\n"
    assert main.main(["report"]) == 1
    assert main.main(["convert", "weights.npz"]) == 1
    assert "--model" in capsys.readouterr().err
    assert main.main(["bench", "--model", "textured_digits", "--platform", "tpu"]) == 1
    assert "no tpu here" in capsys.readouterr().err


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "vitjax", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == vitjax.__version__


def test_neurons_prints_and_writes(tmp_path, capsys):
    out = tmp_path / "neurons.csv"
    flags = ["--model", "textured_digits", "--count", "3", "--out", str(out)]
    assert main.main(["neurons", *flags]) == 0
    shown = capsys.readouterr().out
    assert len(shown.splitlines()) == 4 and any(name in shown for name in CLASSES)
    rows = out.read_text().splitlines()
    assert rows[0] == "system,layer,memory,head,class,logit" and len(rows) == 16


def test_random_weights_are_the_papers_control(tmp_path, capsys):
    flags = ["--data", "textured_digits", "--limit", "4", "--out", str(tmp_path / "r")]
    model = ["--model", "textured_digits", "--random-init", "3"]
    assert main.main(["run", "identifiability", *model, *flags]) == 0
    found = vitjax.open_results(tmp_path / "r")
    assert "random weights, seed 3" in found.manifest["model"]["checkpoint"]
    both = [*model, "--checkpoint", "x.npz"]
    assert main.main(["run", "identifiability", *both, *flags]) == 1
    assert "not both" in capsys.readouterr().err


def test_explain_draws_and_writes_maps(converted, tmp_path, capsys):
    from PIL import Image

    path = tmp_path / "seven.png"
    pixels = np.random.default_rng(0).integers(256, size=(80, 70, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    base = ["explain", str(path), "--model", converted, "--out", str(tmp_path / "out")]
    ask = ["--class", "3", "--method", "legrad,raw_attention", "--blocks", "1"]
    assert main.main([*base, *ask]) == 0
    assert "seven.png: for three" in capsys.readouterr().out
    with Image.open(tmp_path / "out" / "explain.png") as figure:
        assert figure.width > 100
    with np.load(tmp_path / "out" / "explain.npz") as arrays:
        assert arrays["target"].tolist() == [3]
        model = loading.load(converted)
        with Image.open(path) as picture:
            images = model.preprocess(picture)[None]
        expected = vitjax.explain(model, images, 3, method="legrad", layers=(1,))
        np.testing.assert_allclose(
            arrays["map_legrad"].reshape(1, 16), expected, rtol=1e-3, atol=1e-7
        )
    assert main.main([*base, "--method", "chefer", "--heads", "0"]) == 1
    assert "one map of the whole model" in capsys.readouterr().err
    assert main.main([*base, "--class", "eigth"]) == 1
    assert "none of the model's 10 classes" in capsys.readouterr().err


def test_compiled_programs_are_kept_unless_the_user_keeps_them(tmp_path, monkeypatch):
    chosen = jax.config.jax_compilation_cache_dir
    assert (
        str(compilation_cache.keep_compiled()) == chosen
    )  # by this session's environment
    monkeypatch.setenv("VITJAX_CACHE", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        kept = compilation_cache.keep_compiled()
        assert (
            kept == tmp_path / "compiled" / compilation_cache.machine()
            and kept.is_dir()
        )
        assert jax.config.jax_compilation_cache_dir == str(kept)
        jax.config.update("jax_compilation_cache_dir", None)
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("VITJAX_CACHE", str(tmp_path / "file"))
        assert compilation_cache.keep_compiled() is None
        assert jax.config.jax_compilation_cache_dir is None
    finally:
        jax.config.update("jax_compilation_cache_dir", chosen)


def test_estimate_prints_a_sentence_or_json(capsys):
    base = ["estimate", "identifiability", "--model", "textured_digits"]
    small = ["--data", "textured_digits", "--limit", "8", "--batch-size", "8"]
    assert main.main([*base, *small]) == 0
    assert "Estimated for 8 images in batches of 8" in capsys.readouterr().out
    assert main.main([*base, *small, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 8 and found["device_bytes"] > 0 < found["disk_bytes"]
    assert found["host_bytes"] > 2 * 8 * 64 * 64 * 3 * 4  # two batches of pictures


def test_estimate_takes_the_models_that_run_does(converted, monkeypatch):
    asked = []

    def answer(kind, *arguments, **options):
        asked.append(arguments)
        return object.__new__(kind)

    for module, name, kind in (
        (estimating, "estimate", estimating.Estimate),
        (tpu_estimate, "plan", tpu_estimate.Plan),
    ):
        monkeypatch.setattr(module, name, functools.partial(answer, kind))
    folder = Estimate(recipe="tokens", model=converted, data="textured_digits")
    folder.estimate()
    folder.plan("v5e:2x2")
    assert [model.classes for _, model, *_ in asked] == [CLASSES, CLASSES]
    Estimate(recipe="tokens", model="vit_ti16").plan("v5e:2x2")
    assert asked[-1][1] == "vit_ti16"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["reprot", "rows"], "no command 'reprot'. Did you mean report?"),
        (["explain", "a.png", "--modle", "vit_ti16"], "Did you mean --model?"),
        (["run", "paper", "--batchsize=3"], "Did you mean --batch-size?"),
        (["list", "--jsno"], "--jsno is no flag. Did you mean --json?"),
    ],
)
def test_the_nearest_command_or_flag_is_named(words, said, capsys):
    with pytest.raises(SystemExit) as caught:
        main.main(words)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_flags_that_exist_are_not_mended(capsys):
    with pytest.raises(SystemExit):
        main.main(["run", "paper", "--batch_size", "x", "--on-error=stop"])
    assert "Did you mean" not in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--help", "list"])
def test_who_reads_may_leave(words):
    program = f"{shlex.quote(sys.executable)} -m vitjax {words}"
    command = program + " | true; exit ${PIPESTATUS[0]}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_folder_that_cannot_be_made_is_known_before_the_work(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    asked = ["--model", "textured_digits", "--out"]
    commands = [
        ["explain", "none.png", *asked, str(tmp_path / "file")],
        ["neurons", *asked, str(tmp_path / "file/table.csv")],
        ["bench", *asked, str(tmp_path / "file/figures.json")],
    ]
    for command in commands:
        assert main.main(command) == 1
        error = capsys.readouterr().err
        assert_one_paragraph(error, f"Cannot write to {tmp_path / 'file'}")


def test_a_recipe_is_refused_before_weights_are_fetched(tmp_path, capsys):
    words = ["--model", "vit_nowhere", "--data", "textured_digits", "--out", "x"]
    assert main.main(["run", "identifability", *words]) == 1
    assert "Did you mean identifiability?" in capsys.readouterr().err


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_has_an_example_that_parses(name):
    found = re.search(r"Example: vitjax (.+)", main.COMMANDS[name].__doc__)
    words = shlex.split(found.group(1))
    assert words[0] == name
    assert isinstance(main.parse(words), main.COMMANDS[name])


def test_the_list_of_commands_has_a_line_for_each(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main.main(["--help"])
    shown = capsys.readouterr().out
    for name, kind in main.COMMANDS.items():
        line = kind.__doc__.split("\n")[0]
        assert re.search(rf"{name} +{re.escape(line)}", shown), name
    assert "Exit status: 0 done" in shown


def test_machines_are_answered_in_json(converted, tmp_path, capsys):
    assert main.main(["list", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in rows] == list(vitjax.list_models())
    assert main.main(["neurons", "--model", converted, "--count", "2", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert run(converted, tmp_path, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(tmp_path) and found["finished"]
    assert main.main(["report", str(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert pathlib.Path(found["report"]).exists()
    assert (
        main.main(["convert", converted, "--out", str(tmp_path / "c"), "--json"]) == 0
    )
    assert json.loads(capsys.readouterr().out)["dtype"] == "float32"
