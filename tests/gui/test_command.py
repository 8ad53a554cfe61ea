"""The command line that the form copies: what it says, and that it gives the same bits."""

import json
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile
import torch
import zarr
from napari.components import ViewerModel
from napari.layers._source import layer_source
from qtpy.QtWidgets import QApplication

import networks
from napari_seamless.cli import main
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import SeamlessError
from napari_seamless.gui.checkpoint.opening import Choice, Opener
from napari_seamless.gui.presets.command import command_line, notes_on, unsaved_in
from napari_seamless.gui.presets.dropped import presets_of
from napari_seamless.gui.readers import get_reader
from napari_seamless.gui.runs.request import Plan, Request, inputs_of, open_run
from stored_volumes import write_ome

SETTINGS = {
    "patch_size": (4, 12, 16),
    "overlap": 0.3,
    "blending": "hann",
    "activation": "none",
    "device": "cpu",
}


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    path = tmp_path / "a net.pt"
    torch.save(networks.Ramp().state_dict(), path)
    return path


@pytest.fixture
def layers_of():
    """Return a function: path -> layers as a viewer has them after opening it."""
    viewer = ViewerModel()

    def open_path(path: Path) -> list:
        viewer.layers.clear()
        for data, arguments, kind in get_reader(str(path))(str(path)):
            getattr(viewer, f"add_{kind}")(data, **arguments)
        return list(viewer.layers)

    return open_path


def opened_by_napari(path: Path, volume: np.ndarray):
    """Return the layer that napari makes of a TIFF: in memory, and it knows its file."""
    tifffile.imwrite(path, volume)
    with layer_source(path=str(path), reader_plugin="napari"):
        return ViewerModel().add_image(tifffile.imread(path))


def request_over(layer, checkpoint: Path, level: int = 0, **settings) -> Request:
    output = settings.pop("output", None)
    mask = settings.pop("mask", None)
    config = InferenceConfig(**{**SETTINGS, **settings})
    choice = Choice(checkpoint, "networks:Ramp")
    return Request(Plan(layer, config, level), choice, output, mask=mask)


def result_of(request: Request) -> list[np.ndarray]:
    """Return what the widget's run gives, volume by volume, without a view that it follows."""
    with open_run(request, Opener(), inputs_of(request), None, 0) as run:
        for _ in run:
            pass
        return [np.asarray(volume) for volume in run.live]


def run_command(line: str, tmp_path: Path) -> Path:
    """Run a command as a shell would, with its output in a folder of the test."""
    program, *arguments = shlex.split(line)
    assert program == "napari-seamless"
    output = tmp_path / "from the command.h5"
    arguments[arguments.index("--output") + 1] = str(output)
    assert main(arguments) == 0
    return output


def assert_same_bits(request: Request, line: str, tmp_path: Path) -> None:
    (expected,) = result_of(request)
    with h5py.File(run_command(line, tmp_path)) as file:
        found = file["main"][...]
    assert found.dtype == expected.dtype == np.float32
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("known", [None, {}, {"overlap": 0.75, "blending": "hann"}])
def test_an_hdf5_dataset_with_a_region(tmp_path, volume, checkpoint, layers_of, known):
    path = tmp_path / "it's raw.h5"
    with h5py.File(path, "w") as file:
        file["a/raw"] = volume
    (layer,) = layers_of(path)
    request = request_over(layer, checkpoint, region="1:9,3:40,0:31", overlap=0.3)
    line = command_line([request], known)

    assert shlex.split(line)[2] == f"{path}::a/raw"
    assert unsaved_in(line) == ""
    assert_same_bits(request, line, tmp_path)


def test_only_what_differs_is_said(tmp_path, volume, checkpoint, layers_of):
    path = tmp_path / "raw.h5"
    with h5py.File(path, "w") as file:
        file["raw"] = volume
    (layer,) = layers_of(path)
    known = {"patch_size": (4, 12, 16), "overlap": 0.75, "blending": "hann"}
    request = request_over(layer, checkpoint, overlap=0.5, output_scale=(1, "1/2", 2))
    said = shlex.split(command_line([request], known))

    assert said == [
        *("napari-seamless", "predict", f"{path}::raw"),
        *("--checkpoint", str(checkpoint), "--architecture", "networks:Ramp"),
        *("--output", "raw_raw_prediction.zarr"),
        *("--patch-size", "4,12,16"),  # the checkpoint's, but it is always said
        *("--overlap", "0.5"),  # the default, but the checkpoint says 0.75
        *("--blending", "hann", "--output-scale", "1,1/2,2"),
        *("--device", "cpu"),
    ]


def test_every_setting_comes_back_from_the_command_line(volume, checkpoint, tmp_path):
    from napari_seamless.arguments import parse, settings_of

    every = {
        "patch_size": (4, 12, 12),
        "overlap": (2, 0.25, 0),
        "grid": "even",
        "halo": (0, 4, 4),
        "region": ((0, 8), (1, 20), (2, 30)),
        "time_points": (0, 4, 7),
        "skip_constant": True,
        "fill_value": -1.5,
        "on_error": "continue",
        "padding": "edge",
        "blending_arguments": {"sigma": 0.3},
        "planes": "zyx",
        "output_scale": ("1/2", 1, 1),
        "head": "it's",
        "activation": "0:1=sigmoid",
        "blend_logits": True,
        "normalization": "fixed",
        "mean_std": (-1.5, 2.0),
        "percentiles": (2.0, 98.5),
        "do_eval": False,
        "mc_samples": 3,
        "tta": "flip:yx",
        "tta_mode": "max",
        "spread": True,
        "disagreement": True,
        "offsets": ((-1, 0, 0), None),
        "vectors": ((1, None, 2),),
        "output_dtype": "uint8",
        "intensity_scale": 200.0,
        "labelling": "threshold",
        "threshold": 0.25,
        "batch_size": 3,
        "device": "cpu",
        "step": (1, 2, 4),
        "precision": "bfloat16",
        "tf32": True,
        "channels_last": True,
        "graph": "compiled",
        "threads": 1,
    }
    every |= {"blending": "gaussian"}
    assert every.keys() == InferenceConfig.model_fields.keys()
    layer = ViewerModel().add_image(volume)
    config = InferenceConfig(**every)
    request = Request(Plan(layer, config), Choice(checkpoint))
    arguments = shlex.split(command_line([request]))[1:]
    options = parse(arguments, predict=main, inspect=main, evaluate=main, demo=main)

    assert InferenceConfig(**settings_of(options)) == config


def test_a_level_of_a_pyramid_with_a_mask(tmp_path, volume, checkpoint, layers_of):
    path = write_ome(tmp_path / "image.zarr", "0.5", "zyx", volume)
    mask = np.zeros((12, 20, 20), np.uint8)
    mask[2:5, 3:9, 4:18] = 1
    zarr.create_array(tmp_path / "mask.zarr", data=mask)
    (mask_layer,) = layers_of(tmp_path / "mask.zarr")
    (layer,) = layers_of(path)
    request = request_over(layer, checkpoint, level=1, mask=mask_layer)
    line = command_line([request])

    assert shlex.split(line)[2] == f"{path}::1"
    assert_same_bits(request, line, tmp_path)


def test_time_points_of_a_series(tmp_path, volume, checkpoint, layers_of):
    movie = np.stack([volume[:4], volume[4:8], volume[8:]])[:, None]
    path = write_ome(tmp_path / "movie.zarr", "0.5", "tczyx", movie)
    (layer,) = layers_of(path)
    request = request_over(layer, checkpoint, time_points=(1, 2))
    line = command_line([request])
    expected = result_of(request)

    with h5py.File(run_command(line, tmp_path)) as file:
        assert file["main"][...].tobytes() == np.stack(expected).tobytes()


def test_a_tiff_that_napari_itself_opened(tmp_path, volume, checkpoint):
    path = tmp_path / "stack.tif"
    layer = opened_by_napari(path, volume)
    request = request_over(layer, checkpoint)
    line = command_line([request])

    assert shlex.split(line)[2] == str(path)
    assert_same_bits(request, line, tmp_path)


@pytest.mark.parametrize("is_saved", [False, True])
def test_a_layer_whose_voxels_are_in_no_file_gets_a_placeholder(
    tmp_path, volume, checkpoint, is_saved
):
    if is_saved:
        layer = opened_by_napari(tmp_path / "stack.tif", volume)
        layer.data = layer.data + 1
        layer.name = "brighter one"
    else:
        layer = ViewerModel().add_image(volume, name="brighter one")
    line = command_line([request_over(layer, checkpoint)])

    assert shlex.split(line)[2] == "PATH OF brighter one"
    assert unsaved_in(line) == (
        "'brighter one' is in no file: save it, and put its path into the command"
    )


def test_resources_trust_and_weights(tmp_path, volume, checkpoint):
    layer = ViewerModel().add_image(volume)
    plan = Plan(layer, InferenceConfig(patch_size=(4, 8, 8)))
    arguments = json.dumps({"channels": [8, 16], "name": "it's"})
    choice = Choice(checkpoint, "UNet", arguments, True, "ema")
    output = tmp_path / "out dir" / "p.h5"

    def said(**options) -> list[str]:
        return shlex.split(command_line([Request(plan, choice, output, **options)], {}))[3:]

    assert said(memory=3 * 2**29) == [
        *("--checkpoint", str(checkpoint), "--architecture", "UNet"),
        *("--arguments", arguments, "--weights", "ema", "--trust"),
        *("--output", str(output), "--memory", "1536MB", "--patch-size", "4,8,8"),
    ]
    assert said(memory=1001)[-4:-2] == ["--memory", "1001"]
    assert said(workers=3, memory=5)[-4:-2] == ["--workers", "3"]
    assert said(workers="tcp://10.0.0.1:8786")[-3:-2] == ["tcp://10.0.0.1:8786"]
    assert "--overwrite" in said(overwrite=True)
    assert "--overwrite" not in said()


def test_a_damaged_file_is_no_source(tmp_path, volume, checkpoint):
    path = tmp_path / "stack.tif"
    layer = opened_by_napari(path, volume)
    path.write_bytes(b"damage")
    try:
        line = command_line([request_over(layer, checkpoint)])
    except SeamlessError as error:
        pytest.fail(str(error))

    assert shlex.split(line)[2] == f"PATH OF {layer.name}"


def stacks(tmp_path, volume, *names: str) -> list:
    """Return a layer for each of several files, one brighter than the other."""
    return [
        opened_by_napari(tmp_path / f"{name}.tif", volume + number)
        for number, name in enumerate(names)
    ]


def test_several_images_are_one_command(tmp_path, volume, checkpoint):
    mask = np.zeros((12, 40, 40), np.uint8)
    mask[2:5, 3:9, 4:18] = 1
    mask_layer = opened_by_napari(tmp_path / "mask.tif", mask)
    layers = stacks(tmp_path, volume, "one", "the other")
    requests = [request_over(layer, checkpoint, mask=mask_layer) for layer in layers]
    line = command_line(requests)
    assert "\n" not in line
    _, *arguments = shlex.split(line)
    assert arguments[1:3] == [str(tmp_path / "one.tif"), str(tmp_path / "the other.tif")]
    at = arguments.index("--output") + 1
    assert arguments[at] == "{name}_prediction.zarr"
    arguments[at] = str(tmp_path / "{name}_prediction.h5")

    assert main(arguments) == 0
    for request, name in zip(requests, ("one", "the_other"), strict=True):
        with h5py.File(tmp_path / f"{name}_prediction.h5") as file:
            found = file["main"][...]
        (expected,) = result_of(request)
        assert found.tobytes() == np.nan_to_num(expected).tobytes()


def test_files_of_one_name_are_told_apart_by_their_number(tmp_path, volume, checkpoint):
    (tmp_path / "b").mkdir()
    layers = [*stacks(tmp_path, volume, "raw"), *stacks(tmp_path / "b", volume, "raw")]
    said = shlex.split(command_line([request_over(each, checkpoint) for each in layers]))

    assert said[said.index("--output") + 1] == "{vol_id}_prediction.zarr"


def test_outputs_are_those_that_the_form_writes(tmp_path, volume, checkpoint):
    layers = stacks(tmp_path, volume, "one", "two")

    def lines_of(*outputs: str, **more) -> list[str]:
        requests = [
            request_over(layer, checkpoint, output=tmp_path / output)
            for layer, output in zip(layers, outputs, strict=True)
        ]
        return command_line(requests).splitlines()

    (line,) = lines_of("out one.zarr", "out two.zarr")
    assert str(tmp_path / "out {name}.zarr") in shlex.split(line)
    first, second = map(shlex.split, lines_of("out a.zarr", "out b.zarr"))
    assert first[2] == str(tmp_path / "one.tif")
    assert first[first.index("--output") + 1] == str(tmp_path / "out a.zarr")
    assert second[2] == str(tmp_path / "two.tif")
    assert second[second.index("--output") + 1] == str(tmp_path / "out b.zarr")


def test_images_with_other_settings_have_a_line_each(tmp_path, volume, checkpoint):
    layers = stacks(tmp_path, volume, "one", "two")
    regions = ("0:4,0:40,0:40", "2:9,0:40,0:40")
    requests = [
        request_over(layer, checkpoint, region=region)
        for layer, region in zip(layers, regions, strict=True)
    ]
    lines = command_line(requests).splitlines()

    assert [line.split("--region ")[1].split()[0] for line in lines] == list(regions)


def test_an_output_that_is_there_is_no_reason_to_refuse(session_over, tmp_path, volume, checkpoint):
    session = session_over(volume)
    widget, output = session.widget, tmp_path / "out.h5"
    output.touch()
    session.choose(checkpoint, networks.Ramp)
    widget.output.value = output
    session.wait_for(lambda: "out.h5 exists" in session.status)
    presets_of(session.viewer).copy_command()
    line = QApplication.clipboard().text()

    assert str(output) in shlex.split(line)
    assert "--overwrite" not in line
    assert session.status == (
        "Copied, but 'volume' is in no file: save it, and put its path into the command; "
        "out.h5 exists: choose another name in the command, or add --overwrite"
    )
    widget.start_anew.value = True
    presets_of(session.viewer).copy_command()
    assert "--overwrite" in QApplication.clipboard().text()
    assert "out.h5" not in session.status


def test_the_form_copies_the_command_of_all_selected_images(
    session_over, tmp_path, volume, checkpoint
):
    session = session_over(volume)
    session.viewer.layers.clear()
    for name in ("one", "two"):
        tifffile.imwrite(tmp_path / f"{name}.tif", volume)
    session.viewer.open([tmp_path / "one.tif", tmp_path / "two.tif"], plugin="napari")
    session.choose(checkpoint, networks.Ramp)
    session.viewer.layers.select_all()
    session.widget.all_selected.value = True
    presets_of(session.viewer).copy_command()
    inputs = shlex.split(QApplication.clipboard().text())[2:4]

    assert sorted(inputs) == [str(tmp_path / "one.tif"), str(tmp_path / "two.tif")]
    assert session.status == "The command line is on the clipboard"


def test_a_note_for_each_output_that_is_there(tmp_path, volume, checkpoint):
    layers = stacks(tmp_path, volume, "one", "two")
    requests = [
        request_over(layer, checkpoint, output=tmp_path / f"{name}.h5")
        for layer, name in zip(layers, ("one", "two"), strict=True)
    ]
    line = command_line(requests)
    assert notes_on(requests, line) == ""
    requests[1].output.touch()

    assert notes_on(requests, line) == (
        "Copied, but two.h5 exists: choose another name in the command, or add --overwrite"
    )


def test_the_widgets_own_run_has_the_same_bits(session_over, tmp_path, volume, checkpoint):
    session = session_over(volume)
    session.viewer.layers.clear()
    with h5py.File(tmp_path / "raw.h5", "w") as file:
        file["raw"] = volume
    session.viewer.open(tmp_path / "raw.h5", plugin="napari-seamless")
    session.widget.controller.set_follow(False)  # patches in raster order, as without a view
    session.choose(checkpoint, networks.Ramp, overlap=0.3, blending="hann", batch_size=3)
    session.wait_for(lambda: session.status == "Ready")
    presets_of(session.viewer).copy_command()
    line = QApplication.clipboard().text()
    session.press("run_button")
    session.wait_for_end()
    expected = np.asarray(session.live.data)

    with h5py.File(run_command(line, tmp_path)) as file:
        assert file["main"][0].tobytes() == expected.reshape(volume.shape).tobytes()
