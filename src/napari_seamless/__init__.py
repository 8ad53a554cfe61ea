"""Blended sliding-window inference, live in napari and the same without a screen.

The public names are imported when they are first used, so that `import napari_seamless` loads
neither torch, Qt nor napari. The version is that of the installed package.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_seamless.dataset import InferenceVolumeDataset
    from napari_seamless.engine.box import Box
    from napari_seamless.engine.config import InferenceConfig
    from napari_seamless.engine.grid import PatchGrid
    from napari_seamless.engine.matrices import (
        blend_bump,
        blend_gaussian,
        build_blending_matrix,
    )
    from napari_seamless.inference import InferenceRun, predict
    from napari_seamless.lightning import BlendedWriter
    from napari_seamless.models import load_model
    from napari_seamless.prediction import Prediction
    from napari_seamless.tuning import tune

    __version__: str

_HOMES = {
    "BlendedWriter": "lightning",
    "Box": "engine.box",
    "InferenceConfig": "engine.config",
    "InferenceRun": "inference",
    "InferenceVolumeDataset": "dataset",
    "PatchGrid": "engine.grid",
    "Prediction": "prediction",
    "blend_bump": "engine.matrices",
    "blend_gaussian": "engine.matrices",
    "build_blending_matrix": "engine.matrices",
    "load_model": "models",
    "predict": "inference",
    "tune": "tuning",
}

__all__ = [
    "BlendedWriter",
    "Box",
    "InferenceConfig",
    "InferenceRun",
    "InferenceVolumeDataset",
    "PatchGrid",
    "Prediction",
    "__version__",
    "blend_bump",
    "blend_gaussian",
    "build_blending_matrix",
    "load_model",
    "predict",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return _version()
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


def _version() -> str:
    from importlib.metadata import version

    return version("napari-seamless")
