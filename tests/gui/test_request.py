"""Which layers are predicted from, and what becomes of a part of one."""

from dataclasses import replace

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Labels, Points

import networks
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError, SourceError
from napari_seamless.gui.checkpoint.opening import Choice, Opener
from napari_seamless.gui.runs.request import Plan, Request, chosen_image, inputs_of, open_run
from napari_seamless.gui.space.scope import PLANE, region_of


def request_for(layer, checkpoint, region=None) -> Request:
    config = InferenceConfig(
        patch_size=(4, 16, 16), activation="none", normalization="none", region=region, device="cpu"
    )
    return Request(Plan(layer, config), Choice(checkpoint, "networks:Ramp"))


def predicted(request: Request) -> tuple[np.ndarray, int]:
    """Return the prediction (C, Z, Y, X), and how many patches ran."""
    with open_run(request, Opener(), inputs_of(request), None, 0) as run:
        for _ in run:
            pass
        return run.results()[0], run.total


def test_an_empty_viewer_says_what_to_open():
    with pytest.raises(ConfigError, match="Open an image first"):
        chosen_image(None, [])
    with pytest.raises(ConfigError, match="Open an image first"):
        chosen_image(None, [Points(np.zeros((1, 2)))])


def test_labels_are_refused_with_the_way_out():
    labels = Labels(np.zeros((4, 16, 16), np.uint8), name="cells")

    with pytest.raises(ConfigError, match=r"layer 'cells' holds labels.*Convert to Image"):
        chosen_image(None, [labels])
    image = Image(np.zeros((4, 16, 16)))
    assert chosen_image(image, [labels, image]) is image


def test_labels_are_refused_however_they_are_asked_for(checkpoint_of):
    labels = Labels(np.zeros((4, 16, 16), np.uint8), name="cells")

    with pytest.raises(ConfigError, match="'cells' holds labels"):
        inputs_of(request_for(labels, checkpoint_of(networks.Ramp)))


def test_labels_may_be_a_mask(checkpoint_of, volume):
    labels = Labels(np.ones(volume.shape, np.uint8))
    request = request_for(Image(volume), checkpoint_of(networks.Ramp))

    assert inputs_of(replace(request, mask=labels)).mask.array is labels.data


def test_colours_are_refused_with_the_way_out(checkpoint_of):
    colours = Image(np.zeros((16, 16, 3), np.uint8), rgb=True, name="stained")

    with pytest.raises(SourceError, match="'stained' is RGB; split it first"):
        inputs_of(request_for(colours, checkpoint_of(networks.Ramp)))


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_of_a_plane_the_patches_run_that_touch_it_and_it_is_what_it_is_in_all(
    checkpoint_of, volume, order
):
    viewer, checkpoint = ViewerModel(), checkpoint_of(networks.Ramp)
    image = viewer.add_image(volume)
    viewer.dims.order = order
    viewer.dims.set_point(order[0], 5)
    region = region_of(PLANE, None, viewer, image)

    whole, of_all = predicted(request_for(image, checkpoint))
    part, of_part = predicted(request_for(image, checkpoint, region))

    np.testing.assert_array_equal(part[0], whole[0][tuple(slice(*span) for span in region)])
    # of 5 x 4 x 4 patches two layers hold plane 5; of columns only the first one holds it
    assert (of_part, of_all) == ({0: 2 * 4 * 4, 2: 5 * 4 * 1}[order[0]], 5 * 4 * 4)
