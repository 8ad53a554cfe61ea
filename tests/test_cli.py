"""The command line, as a program: exit codes, one line per error, files left behind or not."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch

import networks
from napari_seamless import arguments
from napari_seamless.cli import main
from napari_seamless.engine.config import InferenceConfig

TESTS = Path(__file__).parent


@pytest.fixture
def files(tmp_path):
    """A folder with a volume (10, 24, 24) uint8, its labels, and a network that doubles."""
    volume = np.random.default_rng(3).integers(0, 120, (10, 24, 24), dtype=np.uint8)
    with h5py.File(tmp_path / "volume.h5", "w") as file:
        file["raw"] = volume
        file["labels"] = (volume > 60).astype(np.uint8)
    torch.save(networks.Doubled().state_dict(), tmp_path / "net.pt")
    networks.reset()
    return tmp_path


def predict(folder, *options, source="volume.h5::raw", network="networks:Doubled"):
    return main(
        [
            "predict",
            str(folder / source),
            "--checkpoint",
            str(folder / "net.pt"),
            "--architecture",
            network,
            "--patch-size",
            "4,12,12",
            "--normalization",
            "none",
            "--device",
            "cpu",
            *options,
        ]
    )


def the_error(capsys) -> str:
    """Return the error line, and make sure that it is one line."""
    lines = capsys.readouterr().err.splitlines()
    lines = [line for line in lines if line.startswith("napari-seamless: error: ")]
    assert len(lines) == 1
    return lines[0]


def test_predict_writes_the_prediction_and_what_made_it(files, capsys):
    assert predict(files, "--output", str(files / "out.h5"), "--json", "--overlap", "0.25") == 0

    facts = json.loads(capsys.readouterr().out)
    assert facts["status"] == "complete"
    assert facts["patches"] == facts["of"] == 27
    assert len(networks.calls) == 27  # none is only to foretell how long the rest takes
    with h5py.File(files / "volume.h5") as source, h5py.File(files / "out.h5") as out:
        np.testing.assert_allclose(out["main"][0], 2.0 * source["raw"][...], rtol=1e-6)
        config = json.loads(out["main"].attrs["config"])
        assert (config["patch_size"], config["overlap"]) == ([4, 12, 12], 0.25)
        assert len(out["main"].attrs["checkpoint_sha256"]) == 64


def test_predict_reads_and_writes_tiff(files):
    with h5py.File(files / "volume.h5") as file:
        volume = file["raw"][...]
    tifffile.imwrite(files / "volume.tif", volume)
    assert predict(files, "--output", str(files / "out.tif"), source="volume.tif") == 0

    np.testing.assert_allclose(
        tifffile.imread(files / "out.tif").squeeze(), 2.0 * volume, rtol=1e-6
    )


def test_labels_give_a_dice_coefficient(files, capsys):
    labels = str(files / "volume.h5::labels")
    code = predict(files, "--output", str(files / "out.h5"), "--labels", labels, "--json")

    assert code == 0
    # every grey value above 0 doubles to more than 0.5, so the prediction is nearly everywhere
    with h5py.File(files / "volume.h5") as file:
        found, truth = file["raw"][...] > 0, file["labels"][...] > 0
    expected = 2 * (found & truth).sum() / (found.sum() + truth.sum())
    assert json.loads(capsys.readouterr().out)["dice"] == pytest.approx(expected, abs=1e-6)


def test_options_overrule_the_config_file(files, capsys):
    config = files / "run.json"
    config.write_text(json.dumps({"patch_size": [10, 24, 24], "overlap": 0.0, "batch_size": 2}))
    assert predict(files, "--output", str(files / "out.h5"), "--config", str(config), "--json") == 0

    assert json.loads(capsys.readouterr().out)["of"] == 3 * 2 * 2  # patches of 4,12,12
    assert networks.calls[0][0] == 2


@pytest.mark.parametrize(
    ("options", "source", "words"),
    [
        ((), "absent.h5::raw", ["absent.h5"]),
        ((), "volume.h5::absent", ["absent", "raw"]),
        (("--overlap", "1.0"), None, ["overlap", "1.0", "[0, 1)"]),
        (("--overlap", "-0.1"), None, ["overlap", "-0.1"]),
        (("--overlap", "nan"), None, ["overlap", "nan"]),
        (("--overlap", "half"), None, ["overlap", "half"]),
        (("--patch-size", "4,12"), None, ["patch_size"]),
        (("--patch-size", "4,x,12"), None, ["patch_size [4, 'x', 12]", "three positive integers"]),
        (("--batch-size", "0"), None, ["batch_size", "0"]),
        (("--blending", "tophat"), None, ["tophat", "gaussian"]),
        (("--device", "gpu"), None, ["gpu", "cpu"]),
        (("--device", "cuda:7"), None, ["cuda:7"]),
        (("--architecture", "networks:Absent"), None, ["Absent"]),
        (("--arguments", "{oops"), None, ["--arguments", "{oops", "JSON"]),
        (("--checkpoint", "nowhere.pt"), None, ["nowhere.pt"]),
        (("--config", "nowhere.json"), None, ["nowhere.json"]),
        (("--labels", "nowhere.h5"), None, ["nowhere.h5"]),
        (("--no-such-option",), None, ["--no-such-option"]),
    ],
)
def test_what_cannot_work_exits_with_2_and_one_line(files, capsys, options, source, words):
    extra = ["--output", str(files / "out.h5"), *options]
    try:
        code = predict(files, *extra, **({"source": source} if source else {}))
    except SystemExit as error:  # argparse
        code = error.code

    assert code == 2
    line = the_error(capsys)
    for word in words:
        assert word in line
    assert not (files / "out.h5").exists()


# ------------------------------------------------------------------------------ settings

HALF = Fraction(1, 2)
WORDS = [
    ("--patch-size 8,128,128", "patch_size", (8, 128, 128)),
    ("--patch-size [8,128,128]", "patch_size", (8, 128, 128)),
    ("--overlap 0.25", "overlap", 0.25),
    ("--overlap 3", "overlap", 3),
    ("--overlap 2,0.5,11", "overlap", (2, 0.5, 11)),
    ("--grid even", "grid", "even"),
    ("--halo 0,8,8", "halo", (0, 8, 8)),
    ("--region 0:8,0:64,2:64", "region", ((0, 8), (0, 64), (2, 64))),
    ("--region [[0,8],[0,64],[2,64]]", "region", ((0, 8), (0, 64), (2, 64))),
    ("--padding edge", "padding", "edge"),
    ("--time-points 0:6:2", "time_points", (0, 2, 4)),
    ("--time-points 1,4", "time_points", (1, 4)),
    ("--skip-constant", "skip_constant", True),
    ("--fill-value=-1.5", "fill_value", -1.5),
    ("--on-error continue", "on_error", "continue"),
    ("--blending hann", "blending", "hann"),
    ('--blending-arguments {"sigma":0.3}', "blending_arguments", {"sigma": 0.3}),
    ("--planes zyx", "planes", "zyx"),
    ("--output-scale 1,1/2,0.5", "output_scale", (1, HALF, HALF)),
    ("--output-scale 2,1,2/3 --patch-size 4,12,12", "output_scale", (2, 1, Fraction(2, 3))),
    ("--head 1", "head", "1"),
    ("--head mask,x", "head", "mask,x"),
    ("--activation softmax", "activation", "softmax"),
    ("--activation 0:1=sigmoid,1:2=tanh", "activation", "0:1=sigmoid,1:2=tanh"),
    ("--blend-logits", "blend_logits", True),
    ("--normalization zscore", "normalization", "zscore"),
    ("--percentiles 0.5,99", "percentiles", (0.5, 99)),
    ("--normalization fixed --mean-std 0.5,0.25", "mean_std", (0.5, 0.25)),
    ("--normalization fixed --mean-std=-1,2", "mean_std", (-1, 2)),
    ("--no-do-eval", "do_eval", False),
    ("--no-do-eval --mc-samples 4", "mc_samples", 4),
    ("--tta flip:yx", "tta", "flip:yx"),
    ("--tta-mode 0:1=max,1:2=min", "tta_mode", "0:1=max,1:2=min"),
    ("--spread --tta turn", "spread", True),
    ("--disagreement", "disagreement", True),
    ("--offsets [[1,0,0],null,[0,-1,0]]", "offsets", ((1, 0, 0), None, (0, -1, 0))),
    ("--vectors [[null,3,4]]", "vectors", ((None, 3, 4),)),
    ("--output-dtype uint8", "output_dtype", "uint8"),
    ("--intensity-scale 100", "intensity_scale", 100),
    ("--labelling threshold", "labelling", "threshold"),
    ("--threshold=-0.5", "threshold", -0.5),
    ("--batch-size 4", "batch_size", 4),
    ("--device cuda:1", "device", "cuda:1"),
    ("--step 2,8,8", "step", (2, 8, 8)),
    ("--precision bfloat16", "precision", "bfloat16"),
    ("--tf32", "tf32", True),
    ("--channels-last", "channels_last", True),
    ("--graph frozen", "graph", "frozen"),
    ("--threads 3", "threads", 3),
]


def parsed(words):
    commands = dict.fromkeys(("predict", "inspect", "evaluate", "demo"), lambda options: 0)
    return arguments.parse(words, **commands)


def config_from(*words) -> InferenceConfig:
    required = ["predict", "volume.h5", "--checkpoint", "net.pt", "--output", "out.h5"]
    return InferenceConfig(**arguments.settings_of(parsed([*required, *words])))


@pytest.mark.parametrize(("words", "name", "value"), WORDS, ids=[words for words, *_ in WORDS])
def test_every_setting_can_be_given_in_words(words, name, value):
    size = [] if "--patch-size" in words else ["--patch-size", "4,12,12"]
    config = config_from(*size, *words.split())

    assert getattr(config, name) == value
    default = InferenceConfig.model_fields[name]
    assert default.is_required() or value != default.get_default(call_default_factory=True)
    same = InferenceConfig(**json.loads(config.to_json()))
    assert same == config


def test_the_words_above_name_all_settings():
    assert {name for _, name, _ in WORDS} == set(InferenceConfig.model_fields)


def test_what_is_not_given_is_as_in_python():
    assert config_from("--patch-size", "4,12,12") == InferenceConfig(patch_size=(4, 12, 12))


def test_what_a_run_says_of_itself_is_a_config_file(tmp_path):
    config = tmp_path / "run.json"
    facts = {"status": "complete", "config": {"patch_size": [4, 12, 12], "tta": "flip"}}
    config.write_text(json.dumps(facts))
    found = config_from("--config", str(config), "--tta", "none")
    assert found == InferenceConfig(patch_size=(4, 12, 12))


def test_a_word_can_take_back_what_the_config_file_says(tmp_path):
    config = tmp_path / "run.json"
    config.write_text(
        json.dumps({"patch_size": [4, 12, 12], "region": "0:1,0:2,0:3", "blend_logits": True})
    )
    words = ["--config", str(config), "--region", "null", "--no-blend-logits"]

    assert config_from(*words) == InferenceConfig(patch_size=(4, 12, 12))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--halo 0,8", ["halo [0, 8]", "three integers"]),
        ("--halo=-1,0,0", ["halo [-1, 0, 0]", "0 or more"]),
        ("--region 0:8,0:8", ["region ['0:8', '0:8']", "z0:z1,y0:y1,x0:x1"]),
        ("--region 3:3,0:8,0:8", ["region", "empty", "0:8,0:512,0:512"]),
        ("--region 0:99,0:8,0:8", ["region (0, 0, 0) to (99, 8, 8)", "(10, 24, 24)"]),
        ("--time-points 3", ["no time axis", "time points"]),
        ("--time-points 2:2", ["time_points '2:2'", "0:10:2"]),
        ("--fill-value inf", ["fill_value", "finite"]),
        ("--on-error ignore", ["--on-error", "'ignore'", "'continue'"]),
        ("--memory plenty", ["--memory", "'plenty'", "2GB"]),
        ("--mask nowhere.h5", ["nowhere.h5"]),
        ("--overlap 12", ["overlap 12", "4 voxels", "[0, 1)"]),
        ("--overlap [[[", ["overlap '[[['", "[0, 1)"]),
        ("--overlap NaN", ["overlap nan", "[0, 1)"]),
        ("--output-scale 0", ["output_scale 0", "positive fractions"]),
        ("--output-scale 1,1/7,1", ["output_scale (1, 1/7, 1)", "patch_size (4, 12, 12)"]),
        ("--output-scale 1,1/2,1/2", ["output_scale (1, 1/2, 1/2)", "output_scale=(1, 1, 1)"]),
        ("--blending-arguments 3", ["blending_arguments 3", "mapping of names to numbers"]),
        ('--blending-arguments {"size":3}', ["'size'", "sigma"]),
        ("--planes xy", ["--planes", "'xy'", "'zyx'"]),
        ("--head nosuch", ["head 'nosuch'", "'0'"]),
        ("--activation relu", ["activation 'relu'", "sigmoid", "0:3="]),
        ("--activation 0:1=tanh,1:2=tanh", ["activation '1:2=tanh'", "1 channels"]),
        ("--percentiles 99,1", ["percentiles (99.0, 1.0)", "(1, 99)"]),
        ("--mean-std 0.5,0.25", ["mean_std (0.5, 0.25)", "fixed"]),
        ("--mean-std -1,2", ["--mean-std", "expected one argument", "--mean-std=-1,2"]),
        ("--mc-samples 4", ["mc_samples 4", "do_eval=False"]),
        ("--mc-samples 4 --no-do-eval", ["mc_samples 4", "no dropout", "mc_samples=1"]),
        ("--tta flip+flip", ["tta 'flip+flip'", "flip:AXES"]),
        ("--tta-mode 0:2=max,1:3=min", ["tta_mode", "overlap"]),
        ("--spread", ["spread True", "tta"]),
        ("--offsets [[1,0,0],None]", ["offsets '[[1,0,0],None]'", "for every channel"]),
        ("--offsets [[1,0,0],[0,1,0]]", ["2 offsets for 1 channels", "one (Z, Y, X) per channel"]),
        ("--vectors [[0,1,null]]", ["vector (0, 1, None)", "1 channels"]),
        ("--output-dtype int8", ["--output-dtype", "'int8'", "'uint8'"]),
        ("--intensity-scale=-1", ["intensity_scale -1", "greater than 0"]),
        ("--labelling argmax", ["labelling 'argmax'", "one channel", "'threshold'"]),
        ("--threshold nan", ["threshold 'nan'", "finite"]),
        ("--batch-size 2.5", ["batch_size 2.5", "integer"]),
        (f"--batch-size {'9' * 5000}", ["batch_size", "integer"]),
        ("--patch-size 4,12,12,", ["patch_size [4, 12, 12, '']", "three positive integers"]),
    ],
)
def test_a_setting_that_cannot_be_exits_with_2_and_one_line(files, capsys, words, said):
    try:
        code = predict(files, "--output", str(files / "out.h5"), *words.split())
    except SystemExit as error:  # argparse
        code = error.code

    assert code == 2
    line = the_error(capsys)
    for word in said:
        assert word in line
    assert not (files / "out.h5").exists()
    assert len(networks.calls) < 10  # the first batch, and some to learn of another resolution


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"patchsize": [1, 2, 3]}', ["patchsize is not a setting"]),
        (b"[1]", ["--config must be a JSON object", "list"]),
        (b"{", ["--config is not JSON"]),
        (b"\xff\xfe", ["run.json' cannot be read", "utf-8"]),
        (b'{"overlap": null}', ["overlap None is not usable"]),
    ],
)
def test_an_unusable_config_file_exits_with_2_and_one_line(files, capsys, content, said):
    (files / "run.json").write_bytes(content)
    options = ["--output", str(files / "out.h5"), "--config", str(files / "run.json")]

    assert predict(files, *options) == 2
    line = the_error(capsys)
    for word in said:
        assert word in line


def test_help_is_in_words_of_the_command_line(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["predict", "--help"])

    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for words in (
        "(default: 0.5)",
        "(default: 0,0,0)",
        "(default: 1,1,1)",
        "(default: gaussian)",
        "(default: on)",
        "More than 1 needs --no-do-eval.",
        '"fixed" (see --mean-std)',
        "[[1, 0, 0], null]",
    ):
        assert words in text
    for words in ("None", "False", "Fraction", "typing", "`", "_value", "SUPPRESS"):
        assert words not in text
    for name in InferenceConfig.model_fields:
        assert f"--{name.replace('_', '-')}" in text


def test_help_is_quick():
    """It loads no torch, Qt or file formats."""
    heavy = (
        "torch",
        "napari",
        "qtpy",
        "skimage",
        "scipy",
        "h5py",
        "tifffile",
        "zarr",
        "tensorstore",
        "dask",
        "pandas",
    )
    code = (
        "import sys\n"
        "from napari_seamless.cli import main\n"
        "try:\n    main(['predict', '--help'])\n"
        "except SystemExit:\n"
        f"    print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr.strip() == "[]"


# ------------------------------------------------------------------------------ labels


def strict(text: str) -> dict:
    """Parse JSON as other languages do: NaN is none."""

    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    return json.loads(text, parse_constant=refuse)


def truth_of(folder):
    with h5py.File(folder / "volume.h5") as file:
        return file["raw"][...], file["labels"][...] > 0


def test_labels_give_all_metrics_as_text_and_as_json(files, capsys):
    options = ["--labels", str(files / "volume.h5::labels"), "--threshold", "150"]
    assert predict(files, "--output", str(files / "out.h5"), *options, "--json") == 0
    facts = strict(capsys.readouterr().out)
    assert predict(files, "--output", str(files / "again.h5"), *options) == 0
    text = capsys.readouterr().out

    volume, truth = truth_of(files)
    found = 2.0 * volume > 150
    expected = {
        "dice": 2 * (found & truth).sum() / (found.sum() + truth.sum()),
        "iou": (found & truth).sum() / (found | truth).sum(),
        "precision": 1.0,  # what is above 75 is above 60
        "recall": (found & truth).sum() / truth.sum(),
        "average_precision": 1.0,
        "mean_squared_error": np.square(2.0 * volume - truth).mean(),
    }
    for name, value in expected.items():
        assert facts[name] == pytest.approx(value, rel=1e-6), name
    for label, value in zip(
        ("Dice", "IoU", "precision", "recall", "average precision", "mean squared error"),
        expected.values(),
        strict=True,
    ):
        assert f"{label:22} {value:.4f}\n" in text


def test_a_score_that_does_not_exist_is_null_in_json(files, capsys):
    np.save(files / "nothing.npy", np.zeros((10, 24, 24), np.uint8))
    labels = ["--labels", str(files / "nothing.npy")]
    assert predict(files, "--output", str(files / "out.h5"), *labels, "--json") == 0
    facts = strict(capsys.readouterr().out)

    assert (facts["recall"], facts["average_precision"], facts["dice"]) == (None, None, 0)
    main(["evaluate", str(files / "out.h5"), str(files / "nothing.npy"), "--json"])
    scores = strict(capsys.readouterr().out)
    assert (scores["recall"], scores["average_precision"], scores["dice"]) == (None, None, 0)
    main(["evaluate", str(files / "out.h5"), str(files / "nothing.npy")])
    assert f"{'recall':22} nan\n" in capsys.readouterr().out


def test_labels_that_do_not_fit_are_refused_before_anything_runs(files, capsys):
    np.save(files / "small.npy", np.zeros((10, 24, 23), np.uint8))

    assert predict(files, "--output", str(files / "out.h5"), "--labels", str(files / "small.npy"))
    assert the_error(capsys).endswith(
        f"labels {files / 'small.npy'} have shape (10, 24, 23); for {files / 'volume.h5'}::raw "
        "they must have (10, 24, 24) (Z, Y, X): crop or resample them"
    )
    assert networks.calls == []
    assert not (files / "out.h5").exists()


def test_labels_that_cannot_be_compared_after_all_exit_with_2_and_the_prediction(files, capsys):
    np.save(files / "two.npy", np.zeros((2, 10, 24, 24), np.uint8))
    options = ["--output", str(files / "out.h5"), "--labels", str(files / "two.npy"), "--json"]

    assert predict(files, *options) == 2
    out, err = capsys.readouterr()
    assert strict(out)["status"] == "complete"
    assert "the labels (2, 10, 24, 24)" in err
    with h5py.File(files / "out.h5") as file:
        assert file["main"].attrs["status"] == "complete"


def test_the_file_of_the_labels_is_never_the_output(files, capsys):
    shutil.copy(files / "volume.h5", files / "truth.h5")
    before = (files / "truth.h5").read_bytes()
    options = ["--labels", str(files / "truth.h5::labels"), "--overwrite"]

    assert predict(files, "--output", str(files / "truth.h5"), *options) == 2
    assert "truth.h5 is also an input" in the_error(capsys)
    assert (files / "truth.h5").read_bytes() == before


# ------------------------------------------------------------------------------ evaluate


def test_evaluate_compares_probabilities(files, capsys):
    volume, truth = truth_of(files)
    np.save(files / "p.npy", (volume / 120).astype(np.float32))
    labels = str(files / "volume.h5::labels")

    assert main(["evaluate", str(files / "p.npy"), labels, "--threshold", "0.75", "--json"]) == 0
    found = (volume / 120).astype(np.float32) > 0.75
    scores = strict(capsys.readouterr().out)
    assert scores["recall"] == pytest.approx((found & truth).sum() / truth.sum(), abs=1e-12)
    assert scores["voxels"] == volume.size


def test_evaluate_compares_a_segmentation(files, capsys):
    segments = np.zeros((2, 4, 4), np.uint16)
    segments[:, :, :2], segments[:, :, 2:], truth = 7, 9, np.ones_like(segments)
    np.save(files / "segments.npy", segments)
    np.save(files / "truth.npy", truth)
    paths = [str(files / "segments.npy"), str(files / "truth.npy")]

    assert main(["evaluate", *paths, "--kind", "segmentation", "--json"]) == 0
    scores = strict(capsys.readouterr().out)
    assert (scores["voi_split"], scores["voi_merge"]) == (1, 0)  # one bit: one of two halves
    assert main(["evaluate", *paths, "--kind", "segmentation"]) == 0
    assert f"{'VOI split':22} 1.0000\n" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["out.h5", "out.tif"])
def test_evaluate_takes_a_prediction_saved_as_uint8_for_what_it_was(files, capsys, name):
    options = ["--normalization", "dtype", "--output-dtype", "uint8", "--threshold", "0.6"]
    labels = str(files / "volume.h5::labels")
    out = str(files / name)
    assert predict(files, "--output", out, *options, "--labels", labels, "--json") == 0
    exact = strict(capsys.readouterr().out)

    assert main(["evaluate", out, labels, "--threshold", "0.6", "--json"]) == 0
    scores = strict(capsys.readouterr().out)
    assert scores["dice"] == exact["dice"]  # 2 * v / 255 is a whole number of 255ths
    assert scores["mean_squared_error"] == pytest.approx(exact["mean_squared_error"], abs=1e-6)
    assert 0.1 < scores["dice"] < 0.999


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["absent.h5", "volume.h5::labels"], "no such file"),
        (["volume.h5::raw", "absent.h5"], "no such file"),
        (["volume.h5", "volume.h5::labels"], "needs '::dataset'"),
        (["volume.h5::raw", "small.npy"], "(1, 1, 2, 3)"),
        (["small.npy", "small.npy", "--threshold", "nan"], "threshold is nan"),
        (["small.npy", "small.npy", "--kind", "segmentation"], "float"),
    ],
)
def test_what_cannot_be_evaluated_exits_with_2_and_one_line(
    files, capsys, monkeypatch, words, said
):
    monkeypatch.chdir(files)
    np.save(files / "small.npy", np.zeros((1, 2, 3)))

    assert main(["evaluate", *words]) == 2
    assert said in the_error(capsys)


# ------------------------------------------------------------------------------ files


def test_a_pickle_is_refused_and_not_run(files, capsys):
    class Bomb:
        def __reduce__(self):
            return Path.touch, (files / "harm",)

    (files / "net.pt").write_bytes(pickle.dumps(Bomb()))

    assert predict(files, "--output", str(files / "out.h5")) == 2
    assert "pickled" in the_error(capsys)
    assert not (files / "harm").exists()


def test_an_output_that_exists_is_kept_unless_overwrite(files, capsys):
    out = files / "out.h5"
    out.write_text("precious")

    assert predict(files, "--output", str(out)) == 2
    assert "--overwrite" in the_error(capsys)
    assert out.read_text() == "precious"
    assert predict(files, "--output", str(out), "--overwrite") == 0
    assert h5py.is_hdf5(out)


@pytest.mark.parametrize("name", ["volume.h5", "net.pt"])
def test_an_input_is_never_the_output(files, capsys, name):
    before = (files / name).read_bytes()

    assert predict(files, "--output", str(files / name), "--overwrite") == 2
    assert name in the_error(capsys)
    assert (files / name).read_bytes() == before


def test_a_config_need_not_be_complete(files):
    (files / "run.json").write_text('{"overlap": 0.0}')
    config = str(files / "run.json")

    assert predict(files, "--output", str(files / "out.h5"), "--config", config) == 0
    assert len(networks.calls) == 3 * 2 * 2


def test_a_patch_beyond_any_memory_is_refused(files, capsys):
    sizes = "999999,99999,99999"

    assert predict(files, "--output", str(files / "out.h5"), "--patch-size", sizes) == 2
    assert "patch_size (999999, 99999, 99999)" in the_error(capsys)


def test_a_disk_too_small_is_said_before_the_work_is_done(files, capsys, monkeypatch):
    usage = shutil.disk_usage(files)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)

    assert predict(files, "--output", str(files / "out.h5")) == 2
    line = the_error(capsys)
    assert "out.h5" in line
    assert "free" in line
    assert len(networks.calls) == 1  # the batch that tells how many channels there are
    assert not (files / "out.h5").exists()


def test_a_wrong_channel_count_is_named(files, capsys):
    torch.save(torch.nn.Conv3d(3, 1, 1).state_dict(), files / "net.pt")
    arguments = json.dumps({"in_channels": 3, "out_channels": 1, "kernel_size": 1})
    out = str(files / "out.h5")

    assert predict(files, "--arguments", arguments, "--output", out, network="torch.nn:Conv3d") == 2
    line = the_error(capsys)
    assert "channels" in line
    assert "has 1 channel, but net.pt takes 3" in line
    assert not Path(out).exists()


def test_nan_in_the_input_is_named_with_its_place(files, capsys):
    volume = np.ones((10, 24, 24), np.float32)
    volume[9, 20, 3] = np.nan
    np.save(files / "volume.npy", volume)

    code = predict(files, "--output", str(files / "out.h5"), source="volume.npy")

    assert code == 2
    assert "(9, 20, 3)" in the_error(capsys)
    with h5py.File(files / "out.h5") as file:  # what came before is not lost
        assert file["main"].attrs["status"] == "failed"
        assert np.nanmax(file["main"][...]) == 2


def test_an_output_that_appears_meanwhile_is_kept_and_so_is_the_prediction(
    files, capsys, monkeypatch
):
    out, part = files / "out.h5", files / "out.h5.run" / "part.h5"
    monkeypatch.setenv("STARTED", str(out))  # `Slow` makes this file at its second batch

    options = ["--output", str(out), "--batch-size", "9"]
    assert predict(files, *options, network="networks:Slow") == 1
    line = the_error(capsys)
    assert "appeared" in line
    assert f"the prediction is kept in {part}" in line
    assert "keeps" not in line
    assert out.read_bytes() == b""
    with h5py.File(files / "volume.h5") as source, h5py.File(part) as kept:
        np.testing.assert_allclose(kept["main"][0], 2.0 * source["raw"][...], rtol=1e-6)
        assert kept["main"].attrs["status"] == "complete"
    out.unlink()
    networks.reset()
    assert predict(files, *options, "--resume", network="networks:Slow") == 0
    assert not part.parent.exists()
    assert h5py.is_hdf5(out)


def test_a_network_that_fails_later_exits_with_1_and_keeps_what_was_done(files, capsys):
    out = files / "out.h5"
    options = ["--output", str(out), "--batch-size", "3"]  # 12 batches: none only to foretell
    code = predict(files, *options, network="networks:FailsLater")

    assert code == 1
    line = the_error(capsys)
    assert "can't allocate memory" in line
    assert f"{out} keeps 6 of" in line
    with h5py.File(out) as file:
        assert file["main"].attrs["status"] == "failed"
        assert int(file["main"].attrs["done"]) == 6
        assert np.isfinite(file["main"][...]).any()


def test_a_network_that_fails_while_the_run_is_foretold_exits_with_1_and_one_line(files, capsys):
    done = run_program(files, "--output", str(files / "out.h5"), source=FAILS_AT_ITS_SECOND)

    assert done.returncode == 1
    errors = done.stderr.decode().splitlines()
    assert sum("error: " in line and "device lost" in line for line in errors) == 1
    assert not any("Traceback" in line for line in errors)
    with h5py.File(files / "out.h5") as file:  # its first batch is kept
        assert [file["main"].attrs[name] for name in ("status", "done")] == ["failed", 1]


def test_a_patch_larger_than_the_volume_is_padded(files):
    assert predict(files, "--output", str(files / "out.h5"), "--patch-size", "16,32,32") == 0

    with h5py.File(files / "volume.h5") as source, h5py.File(files / "out.h5") as out:
        np.testing.assert_allclose(out["main"][0], 2.0 * source["raw"][...], rtol=1e-6)


@pytest.fixture
def described(files):
    """A JSON file that describes the network of the checkpoint and what it was trained with."""
    description = {
        "architecture": "networks:Doubled",
        "arguments": {},
        "patch_size": [5, 12, 12],
        "normalization": "none",
        "activation": "sigmoid",
    }
    (files / "net.json").write_text(json.dumps(description))
    return ["--checkpoint", str(files / "net.pt"), "--arguments", str(files / "net.json")]


def test_settings_that_the_checkpoint_knows_need_not_be_given(files, described, capsys):
    words = ["predict", str(files / "volume.h5::raw"), *described, "--activation", "none"]
    assert main([*words, "--output", str(files / "out.h5"), "--device", "cpu"]) == 0

    said = capsys.readouterr().err
    assert "taken from the checkpoint: patch_size" in said
    assert "activation sigmoid" not in said
    with h5py.File(files / "volume.h5") as source, h5py.File(files / "out.h5") as out:
        np.testing.assert_allclose(out["main"][0], 2.0 * source["raw"][...], rtol=1e-6)
        config = json.loads(out["main"].attrs["config"])
    known = {"patch_size": [5, 12, 12], "normalization": "none", "activation": "none"}
    assert {name: config[name] for name in known} == known


def test_a_setting_that_nobody_knows_is_asked_for(files, capsys):
    words = ["predict", str(files / "volume.h5::raw"), "--checkpoint", str(files / "net.pt")]
    words += ["--architecture", "networks:Doubled", "--output", str(files / "out.h5")]

    assert main(words) == 2
    assert "patch_size is required" in the_error(capsys)


def test_code_in_a_checkpoint_runs_only_with_trust(files, capsys):
    torch.save(networks.Doubled(), files / "module.pt")
    words = ["predict", str(files / "volume.h5::raw"), "--checkpoint", str(files / "module.pt")]
    words += ["--patch-size", "4,12,12", "--normalization", "none", "--device", "cpu"]
    words += ["--output", str(files / "out.h5")]
    assert main(words) == 2
    assert "--trust" in the_error(capsys)
    assert networks.calls == []

    assert main([*words, "--trust"]) == 0
    with h5py.File(files / "volume.h5") as source, h5py.File(files / "out.h5") as out:
        np.testing.assert_allclose(out["main"][0], 2.0 * source["raw"][...], rtol=1e-6)


def test_one_of_several_sets_of_weights_can_be_asked_for(files, capsys):
    last, averaged = ({"weight": torch.full((1, 1, 1, 1, 1), by)} for by in (2.0, 3.0))
    torch.save({"state_dict": last, "ema": averaged, "epoch": 3}, files / "net.pt")
    arguments = {"in_channels": 1, "out_channels": 1, "kernel_size": 1, "bias": False}
    options = ["--arguments", json.dumps(arguments), "--output", str(files / "out.h5")]
    assert predict(files, *options, "--weights", "ema", network="torch.nn:Conv3d") == 0
    with h5py.File(files / "volume.h5") as source, h5py.File(files / "out.h5") as out:
        np.testing.assert_allclose(out["main"][0], 3.0 * source["raw"][...], rtol=1e-6)
        assert out["main"].attrs["weights"] == "ema"

    capsys.readouterr()
    options += ["--overwrite", "--weights", "best"]
    assert predict(files, *options, network="torch.nn:Conv3d") == 2
    error = the_error(capsys)
    assert "best" in error
    assert "ema" in error


def test_inspect_says_what_is_inside(files, capsys):
    checkpoint = str(files / "net.pt")
    assert main(["inspect", checkpoint, "--architecture", "networks:Doubled", "--json"]) == 0

    report = json.loads(capsys.readouterr().out)
    assert report["format"] == "state dict"
    assert report["parameters"] == 1
    assert main(["inspect", checkpoint]) == 0
    assert "state dict" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for another process")
def test_ctrl_c_exits_with_130_and_writes_the_partial_prediction(files):
    program = [sys.executable, "-m", "napari_seamless", "predict", str(files / "volume.h5::raw")]
    options = ["--checkpoint", str(files / "net.pt"), "--architecture", "networks:Slow"]
    sizes = ["--patch-size", "4,12,12", "--output", str(files / "out.h5"), "--device", "cpu"]
    process = subprocess.Popen(
        [*program, *options, *sizes],
        env={**os.environ, "PYTHONPATH": str(TESTS), "STARTED": str(files / "started")},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (files / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)

    assert process.returncode == 130, errors
    with h5py.File(files / "out.h5") as file:
        attributes = dict(file["main"].attrs)
    assert attributes["status"] == "partial"
    assert 0 < attributes["done"] < attributes["total"]


def run_program(folder, *options, source="import networks", stdout=subprocess.PIPE, **environment):
    """Run `predict` in a process of its own with the network own:Network; return what it did."""
    (folder / "own.py").write_text(source)
    program = [sys.executable, "-m", "napari_seamless", "predict", str(folder / "volume.h5::raw")]
    model = ["--checkpoint", str(folder / "net.pt"), "--architecture", "own:Network"]
    sizes = ["--patch-size", "4,12,12", "--device", "cpu"]
    path = os.pathsep.join([str(folder), str(TESTS)])
    return subprocess.run(
        [*program, *model, *sizes, *options],
        env={**os.environ, "PYTHONPATH": path, **environment},
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
        timeout=120,
    )


FAILS_AT_ITS_SECOND = """
import networks
class Network(networks.Doubled):
    def forward(self, image):
        result = super().forward(image)
        if len(networks.calls) == 2:
            raise RuntimeError("device lost")
        return result
"""
DOUBLED = "from networks import Doubled as Network\n"
KILLED_AT_A_BATCH = """
import os, signal, networks
class Network(networks.Doubled):
    def forward(self, image):
        if len(networks.calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().forward(image)
"""
KILLED_WHILE_WRITING = """
import os, signal
from napari_seamless.io.journal import Journal
Journal.record = lambda journal, chunk: os.kill(os.getpid(), signal.SIGKILL)
from networks import Doubled as Network
"""


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("source", [KILLED_AT_A_BATCH, KILLED_WHILE_WRITING])
def test_a_killed_run_leaves_the_old_output_as_it_was(files, source):
    out = files / "out.h5"
    out.write_text("precious")
    done = run_program(files, "--output", str(out), "--overwrite", source=source)

    assert done.returncode == -signal.SIGKILL
    assert out.read_text() == "precious"


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pipe whose reader has gone")
def test_that_nobody_reads_the_summary_is_no_error(files):
    reader, writer = os.pipe()
    os.close(reader)
    done = run_program(
        files, "--output", str(files / "out.h5"), "--json", source=DOUBLED, stdout=writer
    )
    os.close(writer)

    assert done.returncode == 0
    assert b"Error" not in done.stderr
    assert h5py.is_hdf5(files / "out.h5")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_summary_that_cannot_be_printed_exits_with_1_and_one_line(files):
    with open("/dev/full", "w") as full:
        done = run_program(files, "--output", str(files / "out.h5"), source=DOUBLED, stdout=full)

    assert done.returncode == 1
    errors = done.stderr.decode().splitlines()
    assert errors[-1].startswith("napari-seamless: error: the summary cannot be printed")
    assert not any("Traceback" in line or "Exception" in line for line in errors)
    assert h5py.is_hdf5(files / "out.h5")


def test_a_name_that_the_terminal_cannot_show_is_written_even_so(files):
    out = files / "Übersicht 脳.h5"
    done = run_program(files, "--output", str(out), source=DOUBLED, PYTHONIOENCODING="ascii")

    assert done.returncode == 0, done.stderr
    assert rb"\xdcbersicht \u8133.h5" in done.stdout
    assert h5py.is_hdf5(out)


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("folder.h5", "is a folder"),
        ("nowhere/out.h5", "no such folder"),
        ("out.zip", "'.zip'"),
        ("out", "no suffix"),
        ("out.h5::main", "'.h5::main'"),
        ("out_{oops}.h5", "{oops}"),
        (f"{'x' * 300}.h5", "name too long"),
    ],
)
def test_an_output_that_cannot_be_exits_with_2_before_anything_runs(files, capsys, output, said):
    (files / "folder.h5").mkdir()
    before = sorted(os.listdir(files))

    assert predict(files, "--output", str(files / output)) == 2
    assert said in the_error(capsys)
    assert sorted(os.listdir(files)) == before
    assert networks.calls == []
