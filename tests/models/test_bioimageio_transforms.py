"""Packages of bioimage.io: what is done to voxels before and after the network."""

import numpy as np
import pytest

from models.bioimageio_packages import PLANE, VOLUME, Maker, network, quiet, v0_5
from napari_seamless.engine.normalization import normalizer_of
from napari_seamless.engine.source import ArraySource
from napari_seamless.inference import predict
from napari_seamless.models import load_model

ZSCORE = v0_5.ZeroMeanUnitVarianceDescr
RANGE = v0_5.ScaleRangeDescr
FIXED = v0_5.FixedZeroMeanUnitVarianceDescr
LINEAR = v0_5.ScaleLinearDescr
CLIP = v0_5.ClipDescr
CAST = v0_5.EnsureDtypeDescr
BINARIZE = v0_5.BinarizeDescr
SPACE = ["z", "y", "x"]
TWO = VOLUME | {"c": 2}


def float32():
    return CAST(kwargs={"dtype": "float32"})


@pytest.fixture
def make(tmp_path):
    return Maker(tmp_path / "made")


def volume(channels=1, dtype="float32"):
    random = np.random.default_rng(0)
    voxels = 40 + 30 * random.standard_normal((channels, 8, 16, 24)) ** 2
    return (voxels * np.arange(1, channels + 1).reshape(-1, 1, 1, 1)).astype(dtype)


def by_core(path, voxels):
    """Return the voxels as the reference implementation gives them to a network."""
    core = pytest.importorskip("bioimageio.core")
    from bioimageio.core.digest_spec import create_sample_for_model
    from bioimageio.core.proc_setup import get_pre_and_postprocessing
    from bioimageio.spec import load_model_description

    assert core
    with quiet():
        model = load_model_description(path, perform_io_checks=False)
        sample = create_sample_for_model(model, inputs={"input": voxels[None]})
        steps = get_pre_and_postprocessing(model, dataset_for_initial_statistics=[sample])
        steps.pre(sample)
    (tensor,) = sample.members.values()
    return np.asarray(tensor.data)[0]


EQUAL = {
    "zscore of one channel": (1, [ZSCORE()], "zscore"),
    "zscore per channel": (2, [ZSCORE(kwargs={"axes": SPACE})], "zscore"),
    "zscore of a data set": (2, [ZSCORE(kwargs={"axes": ["batch", *SPACE]})], "zscore"),
    "percentiles": (
        2,
        [RANGE(kwargs={"axes": SPACE, "min_percentile": 1.0, "max_percentile": 99.8})],
        "percentile",
    ),
    "range": (2, [RANGE(kwargs={"axes": SPACE})], "minmax"),
    "fixed": (2, [FIXED(kwargs={"mean": 103.5, "std": 13.7})], "fixed"),
    "fixed, alike for all channels": (
        2,
        [FIXED(kwargs={"axis": "channel", "mean": [3.0, 3.0], "std": [10.0, 10.0]})],
        "fixed",
    ),
    "linear": (2, [LINEAR(kwargs={"gain": 0.25, "offset": -1.0})], "fixed"),
    "linear, then fixed": (
        1,
        [LINEAR(kwargs={"gain": 0.25, "offset": 3.0}), FIXED(kwargs={"mean": 2.0, "std": 5.0})],
        "fixed",
    ),
    "nothing": (2, [float32()], "none"),
}


class TestBefore:
    @pytest.mark.parametrize("name", EQUAL)
    def test_settings_do_the_same_as_the_reference(self, make, name):
        channels, steps, normalization = EQUAL[name]
        path = make(network(channels=channels), axes=VOLUME | {"c": channels}, before=steps)
        loaded = load_model(path)
        assert loaded.report.notes == ()
        config = loaded.config()
        assert config.normalization == normalization
        voxels = volume(channels)
        normalizer = normalizer_of(
            ArraySource(voxels), config.normalization, config.percentiles, config.mean_std
        )
        np.testing.assert_allclose(normalizer(voxels), by_core(path, voxels), rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize(
        ("steps", "settings", "notes"),
        [
            (
                [RANGE(kwargs={"axes": SPACE}), CLIP(kwargs={"min": 0.0, "max": 1.0})],
                {"normalization": "minmax"},
                ("not taken over: clip(min=0, max=1)",),
            ),
            (
                [ZSCORE()],
                {"normalization": "none"},
                ("not taken over: zero_mean_unit_variance(eps=1e-06)",),
            ),
            (
                [ZSCORE(kwargs={"axes": ["y", "x"]})],
                {"normalization": "none"},
                ("not taken over: zero_mean_unit_variance(axes=[y, x], eps=1e-06)",),
            ),
            (
                [FIXED(kwargs={"axis": "channel", "mean": [3.0, 4.0], "std": [10.0, 10.0]})],
                {"normalization": "none"},
                (
                    "not taken over: fixed_zero_mean_unit_variance(mean=[3, 4], std=[10, 10], "
                    "axis=channel)",
                ),
            ),
            (
                [ZSCORE(kwargs={"axes": SPACE}), LINEAR(kwargs={"gain": 2.0})],
                {"normalization": "none"},
                (
                    "not taken over: zero_mean_unit_variance(axes=[z, y, x], eps=1e-06), "
                    "scale_linear(gain=2, offset=0)",
                ),
            ),
            (
                [LINEAR(kwargs={"gain": 2.0}), RANGE(kwargs={"axes": SPACE})],
                {"normalization": "none"},
                (
                    "not taken over: scale_linear(gain=2, offset=0), scale_range(axes=[z, y, x], "
                    "min_percentile=0, max_percentile=100, eps=1e-06)",
                ),
            ),
            (
                [LINEAR(kwargs={"gain": -1.0})],
                {"normalization": "none"},
                ("not taken over: scale_linear(gain=-1, offset=0)",),
            ),
            (
                [v0_5.SigmoidDescr(), BINARIZE(kwargs={"threshold": 0.5})],
                {"normalization": "none"},
                ("not taken over: sigmoid(), binarize(threshold=0.5)",),
            ),
            (
                [ZSCORE(kwargs={"axes": SPACE, "eps": 0.01})],
                {"normalization": "zscore"},
                (
                    "zero_mean_unit_variance(axes=[z, y, x], eps=0.01) was taken over without its "
                    "eps",
                ),
            ),
            (
                [LINEAR(kwargs={"gain": 0.5}), CAST(kwargs={"dtype": "uint8"}), float32()],
                {"normalization": "fixed", "mean_std": (0.0, 2.0)},
                ("not taken over: ensure_dtype(dtype=uint8)",),
            ),
        ],
    )
    def test_what_has_no_equal_is_named(self, make, steps, settings, notes):
        report = load_model(make(network(channels=2), axes=TWO, before=steps)).report
        found = {name: report.settings[name] for name in report.settings if name in settings}
        assert found == settings
        assert ("mean_std" in report.settings) == ("mean_std" in settings)
        assert report.notes == notes

    def test_statistics_of_a_plane_are_those_of_a_volume_here(self, make):
        steps = [ZSCORE(kwargs={"axes": ["y", "x"]})]
        report = load_model(make(network(2), axes=PLANE, before=steps)).report
        assert report.settings["normalization"] == "zscore"
        assert report.notes == (
            "zero_mean_unit_variance(axes=[y, x], eps=1e-06) was taken over with statistics of the "
            "whole volume, not of each plane",
        )


class TestAfter:
    @pytest.mark.parametrize(
        ("steps", "settings", "notes"),
        [
            ([], {"activation": "none"}, ()),
            ([v0_5.SigmoidDescr()], {"activation": "sigmoid"}, ()),
            ([v0_5.SoftmaxDescr()], {"activation": "softmax"}, ()),
            (
                [v0_5.SigmoidDescr(), BINARIZE(kwargs={"threshold": 0.25})],
                {"activation": "sigmoid", "labelling": "threshold", "threshold": 0.25},
                (),
            ),
            (
                [BINARIZE(kwargs={"axis": "channel", "threshold": [0.1, 0.2]})],
                {"activation": "none"},
                ("not taken over: binarize(threshold=[0.1, 0.2], axis=channel)",),
            ),
            (
                [v0_5.SoftmaxDescr(kwargs={"axis": "z"})],
                {"activation": "none"},
                ("not taken over: softmax(axis=z)",),
            ),
            (
                [LINEAR(kwargs={"gain": 2.0}), v0_5.SigmoidDescr()],
                {"activation": "none"},
                ("not taken over: scale_linear(gain=2, offset=0), sigmoid()",),
            ),
            (
                [v0_5.SigmoidDescr(), CLIP(kwargs={"min": 0.5})],
                {"activation": "sigmoid"},
                ("not taken over: clip(min=0.5)",),
            ),
            (
                [v0_5.ScaleMeanVarianceDescr(kwargs={"reference_tensor": "input"})],
                {"activation": "none"},
                ("not taken over: scale_mean_variance(reference_tensor=input, eps=1e-06)",),
            ),
        ],
    )
    def test_becomes_settings_or_is_named(self, make, steps, settings, notes):
        report = load_model(make(network(), after=steps)).report
        named = ("activation", "labelling", "threshold")
        assert {n: report.settings[n] for n in report.settings if n in named} == settings
        assert report.notes == notes


class TestAsAWhole:
    """The same prediction as the reference implementation, in one block."""

    @pytest.mark.parametrize("kind", ["zip", "folder"])
    def test_volume(self, make, kind):
        before = [RANGE(kwargs={"axes": SPACE, "min_percentile": 2.0, "max_percentile": 98.0})]
        path = make(network(), kind, before=before, after=[v0_5.SigmoidDescr()])
        voxels = volume()
        loaded = load_model(path)
        config = loaded.config(patch_size=voxels.shape[1:], overlap=0.0)
        found = predict(voxels, loaded, config, progress=False).array[:]
        np.testing.assert_allclose(found, predicted_by_core(path, voxels), rtol=1e-5, atol=1e-5)


def predicted_by_core(path, voxels):
    core = pytest.importorskip("bioimageio.core")
    with quiet():
        sample = core.predict(model=path, inputs={"input": voxels[None]})
    (tensor,) = sample.members.values()
    return np.asarray(tensor.data)[0]
