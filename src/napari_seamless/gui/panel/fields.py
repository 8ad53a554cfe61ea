"""The fields of the form, as they are when it opens, by section."""

from functools import partial
from typing import Any, get_args

import napari
from magicgui.widgets import CheckBox, ComboBox, FloatSpinBox, PushButton, SpinBox, TupleEdit
from napari.layers import Image, Labels

from napari_seamless.engine.config import (
    ACTIVATIONS,
    TTA_CHOICES,
    Blending,
    Normalization,
    OnError,
    Padding,
    Planes,
)
from napari_seamless.engine.grid import Spacing
from napari_seamless.gui.overlays import OVERLAY_KEY
from napari_seamless.gui.panel.text_setting import TextSetting, region_field, times_field

LARGEST_PATCH = 4096


def network_fields() -> list[Any]:
    """Return what is done with what the network returns, and where it runs."""
    return [
        ComboBox(
            name="activation",
            choices=ACTIVATIONS,
            value="sigmoid",
            tooltip="Makes probabilities of what the network returns: sigmoid for each channel, "
            "softmax over all of them. Choose none if the network does it itself",
        ),
        ComboBox(
            name="device",
            choices=("auto", "cpu", "cuda", "mps"),
            tooltip="Where the network runs; auto takes a GPU if there is one",
        ),
    ]


def rarer_network_fields() -> list[Any]:
    """Return how the network is called, for those who know it."""
    return [
        ComboBox(
            name="tta",
            label="TTA",
            choices=TTA_CHOICES,
            tooltip="Test-time augmentation: each patch is predicted flipped along these axes and "
            "turned in this plane as well, and averaged. Takes as many times longer",
        ),
        TextSetting(
            "head",
            "the first",
            tooltip="Which output of a network with several is shown and written: its name, or "
            "its number from 0",
        ),
        ComboBox(
            name="planes",
            choices=get_args(Planes),
            tooltip="For 2-D networks: the axis along which planes are taken one by one; zyx "
            "takes them along all three and averages",
        ),
    ]


def image_fields(viewer: "napari.viewer.Viewer") -> list[Any]:
    """Return what is predicted from."""
    return [
        ComboBox(
            name="image",
            choices=lambda box: _images(viewer),
            tooltip="Layer to predict: (Y, X), (Z, Y, X), (C, Z, Y, X) or (T, C, Z, Y, X); a time "
            "axis of fewer axes is told by its label",
        ),
        ComboBox(
            name="level",
            choices=(0,),
            visible=False,
            tooltip="Which level of a multiscale image is predicted; 0 is the finest",
        ),
        times_field(
            name="time_points",
            hint="all",
            visible=False,
            tooltip="Which time points are predicted: 3, 0:10, 0:10:2 or 0,4,7; empty for all",
        ),
        ComboBox(
            name="normalization",
            choices=[name for name in get_args(Normalization) if name != "fixed"],
            value="dtype",
            tooltip="What the network gets, as in its training. dtype: unsigned integers divided "
            "by their largest value; the others use statistics of the whole image",
        ),
    ]


def rarer_image_fields(viewer: "napari.viewer.Viewer") -> list[Any]:
    """Return which parts of the image are left out, and what stands in for what is missing."""
    return [
        region_field(
            name="region",
            hint="the whole image",
            tooltip="Part of the image to predict, in voxels (Z, Y, X): 0:8,0:512,0:512",
        ),
        _mask_choice(viewer),
        tick(
            "skip_constant",
            "skip constant patches",
            "Do not run patches whose input is the same value everywhere",
        ),
        ComboBox(
            name="padding",
            choices=get_args(Padding),
            tooltip="What a patch sees outside of the image: the image mirrored, its last voxels "
            "repeated, or 0",
        ),
        ComboBox(
            name="on_error",
            label="unreadable",
            choices=get_args(OnError),
            tooltip="If a part of the image cannot be read: stop, or continue without the patches "
            "that need it",
        ),
    ]


def patch_fields() -> list[Any]:
    """Return how the image is cut into patches and put together again."""
    return [
        TupleEdit(
            name="patch_size",
            value=(8, 128, 128),
            options={"min": 1, "max": LARGEST_PATCH},
            tooltip="Voxels of one input of the network (Z, Y, X). Larger is better and faster, "
            "as far as memory goes",
        ),
        FloatSpinBox(
            name="overlap",
            value=0.5,
            min=0,
            max=0.99,
            step=0.05,
            tooltip="Share of a patch that its neighbour also covers, along each axis. 0.5 in 3-D "
            "predicts each voxel 8 times, 0.25 about 2.4 times",
        ),
        ComboBox(
            name="blending",
            choices=get_args(Blending),
            value="gaussian",
            tooltip="Window that weights a patch: how much less its edges count than its middle",
        ),
    ]


def tuning_fields() -> list[Any]:
    """Return what tunes the settings."""
    return [
        ComboBox(
            name="tune_patches",
            label="tune with",
            choices=[("same patches", "same"), ("larger patches", "larger"), ("a halo", "halo")],
            tooltip="What tuning may do about voxels that are computed several times: nothing; "
            "larger patches that overlap by as many voxels; or no overlap, but the network's "
            "receptive field as a halo, as if all of the image went through it at once",
        ),
        PushButton(
            name="tune_button",
            text="Tune",
            tooltip="Try for some seconds which settings are fastest on this machine, and fill "
            "them in",
        ),
    ]


def rarer_patch_fields() -> list[Any]:
    """Return the finer points of the patches."""
    return [
        SpinBox(
            name="batch_size",
            value=4,
            min=1,
            max=1024,
            tooltip="Patches per call of the network. More is faster, as far as memory goes",
        ),
        TupleEdit(
            name="halo",
            value=(0, 0, 0),
            options={"min": 0, "max": LARGEST_PATCH},
            tooltip="Voxels (Z, Y, X) around a patch that the network sees as well and that are "
            "cut off its output, not blended",
        ),
        ComboBox(
            name="grid",
            label="spacing",
            choices=get_args(Spacing),
            tooltip="snap: patches at a constant distance, the last one shifted back inside the "
            "image. even: all at the same distance",
        ),
    ]


def debug_fields(viewer: "napari.viewer.Viewer") -> list[Any]:
    """Return what is kept and compared to judge a prediction."""
    return [
        tick(
            "disagreement",
            "sum up disagreement",
            "Sum up during the run how much overlapping patches differ: where they do, "
            "blending hides something. Takes twice the memory for sums",
        ),
        ComboBox(
            name="truth",
            label="labels",
            choices=lambda box: _labels(viewer),
            nullable=True,
            tooltip="Labels layer to score the prediction against, foreground where not 0",
        ),
    ]


def tick(name: str, label: str, tooltip: str) -> CheckBox:
    """Return a box to tick whose text is its label, also when that is marked."""
    box = CheckBox(name=name, label=label, tooltip=tooltip)
    box.label_changed.connect(partial(setattr, box, "text"))
    return box


def _mask_choice(viewer: "napari.viewer.Viewer") -> ComboBox:
    return ComboBox(
        name="mask",
        choices=lambda box: [*_images(viewer), *_labels(viewer)],
        nullable=True,
        tooltip="Only patches that touch a voxel of this layer that is not 0 are run",
    )


def _images(viewer: "napari.viewer.Viewer") -> list[Image]:
    """Return the image layers of a viewer, without the overlays."""
    images = [layer for layer in viewer.layers if isinstance(layer, Image)]
    return [image for image in images if OVERLAY_KEY not in image.metadata]


def _labels(viewer: "napari.viewer.Viewer") -> list[Labels]:
    labels = [layer for layer in viewer.layers if isinstance(layer, Labels)]
    return [layer for layer in labels if OVERLAY_KEY not in layer.metadata]
