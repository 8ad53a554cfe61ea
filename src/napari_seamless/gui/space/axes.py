"""Which axes a layer has, by letter: T, C, Z, Y, X."""

from collections.abc import Sequence

from napari.layers import Layer

_NAMES = {"t": "T", "time": "T", "c": "C", "channel": "C", "channels": "C", "z": "Z"}
_KINDS = {
    2: ("YX",),
    3: ("ZYX", "CYX", "TYX"),
    4: ("CZYX", "TZYX", "TCYX"),
    5: ("TCZYX", "CTZYX"),
}
"""What the axes may be; the first if their labels do not say."""


def axes_of(layer: Layer) -> str:
    """Return a letter for each axis of a layer; "" if it has too few or too many."""
    return axes_named(layer.axis_labels)


def axes_named(labels: Sequence[str]) -> str:
    """Return the letters of axes with these labels, which may say nothing."""
    known = [_NAMES.get(str(label).lower(), "") for label in labels[:-2]]
    kinds = _KINDS.get(len(labels), ("",))
    fitting = [
        kind
        for kind in kinds
        if all(name in ("", letter) for name, letter in zip(known, kind, strict=False))
    ]
    return [*fitting, kinds[0]][0]


def axes_of_prediction(image: str, channels: int) -> str:
    """Return the axes of a layer that shows a prediction made from an image.

    Those of the image, so that napari, which lines layers up at their last axes, puts them at the
    same sliders; channels that only the prediction has come first.
    """
    if "C" not in image:
        return "C" + image if channels > 1 else image
    return image if channels > 1 or "T" in image else image.replace("C", "")
