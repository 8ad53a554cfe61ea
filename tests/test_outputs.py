"""What `predict` writes, read back by the tools that others use: values, scale, facts."""

import json

import h5py
import numpy as np
import pytest
import tifffile
import zarr
from ome_zarr_models.v05.image import Image

import napari_seamless as ns
import networks
from napari_seamless.engine.errors import OutputError
from napari_seamless.metrics import evaluate
from outputs import read

SHAPE = (20, 40, 48)
SCALE, PLACE = (40.0, 8.0, 8.0), (400.0, -16.0, 80.0)
CONFIG = ns.InferenceConfig(patch_size=(8, 16, 16), normalization="dtype", device="cpu")


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(2).integers(0, 120, SHAPE, dtype=np.uint8)


@pytest.fixture(autouse=True)
def no_calls():
    networks.reset()


@pytest.fixture
def image(volume, tmp_path):
    """An OME-Zarr image of nanometers, as other tools write it."""
    path = tmp_path / "in.zarr"
    axes = [{"name": name, "type": "space", "unit": "nanometer"} for name in "zyx"]
    transforms = [{"type": "scale", "scale": SCALE}, {"type": "translation", "translation": PLACE}]
    datasets = [{"path": "0", "coordinateTransformations": transforms}]
    ome = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets, "name": "in"}]}
    group = zarr.create_group(path, attributes={"ome": ome})
    group.create_array("0", data=volume, chunks=(8, 16, 16))
    return path


def predict(source, out, network=None, config=CONFIG, **options):
    return ns.predict(source, network or networks.Doubled(), config, out, progress=False, **options)


def settings(**changes):
    return ns.InferenceConfig(**{**CONFIG.model_dump(exclude_unset=True), **changes})


def geometry_of(path):
    """Return scale and translation along (Z, Y, X), and the unit, of an OME-Zarr image."""
    multiscale = zarr.open_group(path, mode="r").attrs["ome"]["multiscales"][0]
    (units,) = {axis.get("unit") for axis in multiscale["axes"] if axis["type"] == "space"}
    scale, place = multiscale["datasets"][0]["coordinateTransformations"]
    return scale["scale"][-3:], place["translation"][-3:], units


def test_zarr_python_and_ome_zarr_models_read_a_prediction(volume, image, tmp_path):
    out = tmp_path / "out.zarr"
    prediction = predict(image, out)

    group = zarr.open_group(out, mode="r")
    np.testing.assert_array_equal(group["0"][:], prediction.array)
    np.testing.assert_allclose(group["0"][0], volume * (2 / 255), rtol=1e-6)
    multiscale = Image.from_zarr(group).attributes.ome.multiscales[0]
    assert [axis.name for axis in multiscale.axes] == ["c", "z", "y", "x"]
    assert geometry_of(out) == ([*SCALE], [*PLACE], "nanometer")
    assert group.attrs["napari-seamless"]["status"] == "complete"
    assert group.attrs["napari-seamless"]["geometry"]["units"] == ["nanometer"] * 3


def test_napari_ome_zarr_reads_a_prediction(volume, image, tmp_path):
    napari_get_reader = pytest.importorskip("napari_ome_zarr").napari_get_reader
    out = tmp_path / "out.zarr"
    prediction = predict(image, out, config=settings(labelling="threshold", threshold=0.6))

    layers = napari_get_reader(str(out))(str(out))
    kinds = {kind: (data, options) for data, options, kind in layers}
    data, options = kinds["image"]
    finest = data[0] if isinstance(data, (list, tuple)) else data
    np.testing.assert_array_equal(np.asarray(finest).reshape(SHAPE), prediction.array[0])
    assert list(options["scale"])[-3:] == [*SCALE]
    # of version 0.5 it takes no translation, whoever wrote it; `geometry_of` has it
    assert geometry_of(out)[1] == [*PLACE]
    labels = kinds["labels"][0]
    finest = labels[0] if isinstance(labels, (list, tuple)) else labels
    np.testing.assert_array_equal(np.asarray(finest).reshape(SHAPE), prediction.array[0] > 0.6)


@pytest.mark.parametrize(
    ("changes", "scale", "place"),
    [
        ({}, SCALE, PLACE),
        # half as large: the faces stay where they are, so the first centre moves a quarter
        ({"output_scale": 2}, (20, 4, 4), (390, -18, 78)),
        ({"region": "3:11,8:40,16:48"}, SCALE, (400 + 3 * 40, -16 + 8 * 8, 80 + 16 * 8)),
        (
            {"output_scale": 2, "region": "3:11,8:40,16:48"},
            (20, 4, 4),
            (390 + 3 * 40, -18 + 8 * 8, 78 + 16 * 8),
        ),
    ],
    ids=["as it is", "twice as fine", "a region", "both"],
)
def test_scale_and_place_follow_output_scale_and_region(image, tmp_path, changes, scale, place):
    class Twice(networks.Doubled):
        """Returns every voxel twice along each axis."""

        def forward(self, image):
            for axis in (2, 3, 4):
                image = image.repeat_interleave(2, dim=axis)
            return super().forward(image)

    network = Twice() if "output_scale" in changes else networks.Doubled()
    config = settings(**changes)
    out = tmp_path / "out.zarr"
    predict(image, out, network, config)
    assert geometry_of(out) == ([*map(float, scale)], [*map(float, place)], "nanometer")

    predict(image, tmp_path / "out.h5", network, config)
    with h5py.File(tmp_path / "out.h5") as file:
        facts = json.loads(file["main"].attrs["geometry"])
        # as ImageJ and others have it: micrometers
        np.testing.assert_allclose(
            file["main"].attrs["element_size_um"], [size / 1000 for size in scale]
        )
    assert (facts["scale"], facts["translation"]) == ([*scale], [*place])
    predict(image, tmp_path / "out.tif", network, config)
    with tifffile.TiffFile(tmp_path / "out.tif") as tiff:
        facts = tiff.shaped_metadata[0]["geometry"]
    assert (facts["scale"], facts["translation"]) == ([*scale], [*place])


def test_a_prediction_is_read_as_input_with_its_geometry(volume, image, tmp_path):
    for name in ("out.zarr", "out.h5"):
        predict(image, tmp_path / name)
        again = tmp_path / f"again_{name.replace('.', '_')}.zarr"
        predict(tmp_path / name, again)
        np.testing.assert_allclose(zarr.open(again / "0")[0], volume * (4 / 255), rtol=1e-6)
    assert geometry_of(tmp_path / "again_out_zarr.zarr") == ([*SCALE], [*PLACE], "nanometer")


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8", "uint16"])
def test_h5py_and_tifffile_read_a_prediction(volume, tmp_path, dtype):
    config = settings(output_dtype=dtype)
    exact = volume * (2 / 255)
    scale = np.iinfo(dtype).max if dtype.startswith("u") else 1
    half = 0.5 / scale if dtype.startswith("u") else 2.0**-11
    for suffix in ("h5", "tif", "zarr"):
        predict(volume, tmp_path / f"out.{suffix}", config=config)
    with h5py.File(tmp_path / "out.h5") as file:
        hdf5 = file["main"][...]
    tiff = tifffile.imread(tmp_path / "out.tif")

    assert hdf5.dtype == tiff.dtype == zarr.open(tmp_path / "out.zarr/0").dtype == dtype
    np.testing.assert_allclose(hdf5[0] / np.float64(scale), exact, atol=1.01 * half)
    np.testing.assert_array_equal(tiff.reshape(hdf5.shape), hdf5)
    np.testing.assert_array_equal(zarr.open(tmp_path / "out.zarr/0")[:], hdf5)


def test_coarser_levels_are_means_and_lie_where_the_fine_one_does(tmp_path):
    volume = np.random.default_rng(4).random((64, 300, 300), dtype=np.float32)
    config = ns.InferenceConfig(patch_size=(32, 150, 150), normalization="none", device="cpu")
    out = tmp_path / "out.zarr"
    prediction = predict(volume, out, config=config)

    group = zarr.open_group(out, mode="r")
    levels = group.attrs["ome"]["multiscales"][0]["datasets"]
    assert len(levels) > 1
    fine, coarse = group["0"][:], group["1"][:]
    np.testing.assert_array_equal(fine, prediction.array)
    by = [old // new for old, new in zip(fine.shape[1:], coarse.shape[1:], strict=True)]
    z, y, x = coarse.shape[1:]
    blocks = fine[0][: z * by[0], : y * by[1], : x * by[2]]
    means = blocks.reshape(z, by[0], y, by[1], x, by[2]).mean(axis=(1, 3, 5))
    np.testing.assert_allclose(coarse[0], means, rtol=1e-5)
    scale, place = (each for each in levels[1]["coordinateTransformations"])
    assert scale["scale"][-3:] == [*map(float, by)]
    assert place["translation"][-3:] == [(size - 1) / 2 for size in by]


# ------------------------------------------------------------------------------ facts


@pytest.mark.parametrize("suffix", ["zarr", "h5", "tif"])
def test_an_output_says_what_made_it_and_how_good_it_is(volume, tmp_path, suffix):
    truth, out = volume > 60, tmp_path / f"out.{suffix}"
    prediction = predict(volume, out, labels=truth)
    if suffix == "zarr":
        facts = zarr.open_group(out, mode="r").attrs["napari-seamless"]
    elif suffix == "tif":
        with tifffile.TiffFile(out) as tiff:
            facts = tiff.shaped_metadata[0]
    else:
        with h5py.File(out) as file:
            facts = dict(file["main"].attrs)
        facts = {
            name: json.loads(value) if str(value).startswith("{") else value
            for name, value in facts.items()
        }

    expected = evaluate(np.asarray(prediction.array), truth)
    assert facts["metrics"]["dice"] == prediction.metrics["dice"]
    assert facts["metrics"]["dice"] == pytest.approx(expected["dice"], abs=1e-12)
    assert facts["metrics"]["voxels"] == truth.size
    assert facts["config"]["patch_size"] == [8, 16, 16]
    assert facts["network"] == "Doubled"
    assert facts["versions"]["napari-seamless"] == ns.__version__
    assert (facts["status"], int(facts["done"])) == ("complete", int(facts["total"]))
    assert ns.InferenceConfig(**facts["config"]) == CONFIG


def test_an_output_says_the_metrics_of_its_own_volume(volume, tmp_path):
    other = 119 - volume
    sources, labels = [volume, other], [volume > 60, other > 80]
    prediction = predict(sources, tmp_path / "out_{vol_id}.zarr", labels=labels)

    found = []
    for vol_id, truth in enumerate(labels):
        group = zarr.open_group(tmp_path / f"out_{vol_id}.zarr", mode="r")
        found.append(group.attrs["napari-seamless"]["metrics"]["dice"])
        expected = evaluate(np.asarray(prediction.arrays[vol_id]), truth)["dice"]
        assert found[-1] == pytest.approx(expected, abs=1e-12)
    assert found[0] != found[1]
    assert min(found) < prediction.metrics["dice"] < max(found)


def test_resuming_keeps_what_an_output_says(volume, tmp_path):
    out = tmp_path / "out.zarr"
    with ns.InferenceRun(volume, networks.Doubled(), CONFIG, out) as run:
        for event in run:
            if event.done == 30:
                run.cancel()
    partial = dict(zarr.open_group(out, mode="r").attrs["napari-seamless"])
    assert (partial["status"], partial["done"]) == ("partial", 30)
    predict(volume, out, resume=True)

    facts = dict(zarr.open_group(out, mode="r").attrs["napari-seamless"])
    assert (facts["status"], facts["done"]) == ("complete", facts["total"])
    assert {name: facts[name] for name in ("config", "identity", "source", "geometry")} == {
        name: partial[name] for name in ("config", "identity", "source", "geometry")
    }


def refusal(source, out, **options):
    with pytest.raises(OutputError) as caught:
        predict(source, out, **options)
    assert "\n" not in str(caught.value)
    assert networks.calls == []
    return str(caught.value)


class TestRefusals:
    """Outputs that cannot be, said before anything is computed."""

    @pytest.mark.parametrize("out", ["s3://bucket/out.zarr", "gs://b/out.h5", "http://host/o.tif"])
    def test_a_url(self, volume, out):
        assert refusal(volume, out) == (
            f"output {out} is a URL; outputs are written to local or shared disks: give a path, "
            "and copy the output there when it is complete"
        )

    @pytest.mark.parametrize("name", ["out.zarr", "deep/out.h5", "0/out.zarr", "out.tif"])
    @pytest.mark.parametrize("source", ["{}", "zarr://{}", "file://{}"])
    def test_in_the_folder_of_the_input(self, image, name, source):
        (image / "deep").mkdir()
        out = image / name
        assert refusal(source.format(image), out) == (
            f"output {out} is in the folder of the input {image}; choose a place outside of it"
        )
        assert not out.exists()

    def test_beside_the_array_in_one_container(self, volume, image):
        zarr.open_group(image).create_array("raw", data=volume, chunks=(8, 16, 16))
        assert "is in the folder of the input" in refusal(f"{image}::raw", image / "raw/out.zarr")
        predict(f"{image}::raw", image / "out.zarr")
        np.testing.assert_allclose(
            zarr.open_array(image / "out.zarr/0")[0], volume * (2 / 255), rtol=1e-6
        )

    @pytest.mark.parametrize("source", ["in.zarr/0", "in.zarr::0", "link.zarr"])
    def test_around_or_the_same_as_the_input(self, volume, image, source):
        (image.parent / "link.zarr").symlink_to(image)
        said = refusal(image.parent / source, image, overwrite=True)
        assert "would replace the input" in said or "is also an input" in said
        np.testing.assert_array_equal(zarr.open_array(image / "0")[...], volume)

    def test_the_file_of_the_input(self, volume, tmp_path):
        path = tmp_path / "in.h5"
        with h5py.File(path, "w") as file:
            file["raw"] = volume
        said = refusal(f"{path}::raw", path, overwrite=True)
        assert said == f"output {path} is also an input; choose another name"

    def test_a_plane_more_in_a_folder_of_planes(self, volume, tmp_path):
        folder = tmp_path / "planes"
        folder.mkdir()
        for z, plane in enumerate(volume):
            tifffile.imwrite(folder / f"{z:03}.tif", plane)
        assert "is in the folder of the input" in refusal(folder, folder / "out.tif")
        predict(folder, folder / "out.zarr")
        assert (folder / "out.zarr").is_dir()


@pytest.mark.parametrize("suffix", ["h5", "tif", "zarr"])
@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_an_output_that_another_run_writes_is_refused(volume, tmp_path, suffix, options):
    out = tmp_path / f"out.{suffix}"
    said = (
        f"output {out} is being written by another run: wait until it has ended, cancel it, or "
        "choose another output"
    )
    with ns.InferenceRun(volume, networks.Doubled(), CONFIG, out) as run:
        next(run)
        networks.reset()
        assert refusal(volume, out, **options) == said
        run.cancel()
        list(run)
    predict(volume, out, resume=True)


@pytest.mark.parametrize("suffix", ["h5", "tif", "zarr"])
def test_the_layer_of_a_cancelled_run_stays_when_another_goes_on(volume, tmp_path, suffix):
    """Its open sums are in files, which the other run removes."""
    out = tmp_path / f"out.{suffix}"
    config = settings(overlap=0.5)
    with ns.InferenceRun(volume, networks.Doubled(), config, out, memory=0) as run:
        for event in run:
            if event.done >= event.total // 2:
                run.cancel()
        before = run.live[0][:]
        assert run.volumes[0].accumulator.open
        is_one_chunk = suffix == "zarr"  # which is needed at once
        assert is_one_chunk or [*tmp_path.glob("out.*.run/seamless-sums-*/*")]
        predict(volume, out, config=config, resume=True)
        assert not [*tmp_path.glob("out.*.run")]
        after = run.live[0][:]
    known = np.isfinite(before)
    assert 0 < known.sum() < known.size
    np.testing.assert_array_equal(after[known], before[known])


@pytest.mark.parametrize("suffix", ["h5", "tif", "zarr"])
def test_integers_that_were_never_written_are_the_fill_value(volume, tmp_path, suffix):
    """As those are that a run has begun and not predicted; labels are 0 there."""
    out = tmp_path / f"out.{suffix}"
    config = settings(output_dtype="uint8", fill_value=0.4, labelling="threshold")
    deep = np.concatenate([volume] * 4)
    with ns.InferenceRun(deep, networks.Doubled(), config, out) as run:
        next(run)
        run.cancel()
        list(run)
    found, labels = read(out), read(out, "labels")
    assert (found[:, -20:] == 102).all()
    assert not (found[:, 0] == 102).all()
    assert (labels[:, -20:] == 0).all()
