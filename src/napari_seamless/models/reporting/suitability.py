"""Whether a checkpoint suits a volume and settings, as far as can be said before a run."""

from pathlib import Path

from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.source import Source
from napari_seamless.models.reporting.report import ModelReport


def unsuitable(report: ModelReport, config: InferenceConfig, source: Source) -> str | None:
    """Return in one line why a network cannot take a volume's patches, or None if it may.

    Parameters
    ----------
    report : ModelReport
        Of the checkpoint; what it does not know is not asked for.
    config : InferenceConfig
        For patch size, halo and planes.
    source : Source
        For its channels.
    """
    channels, name = source.shape[0], Path(report.path).name
    if report.in_channels not in (None, channels):
        return (
            f"{source.name} has {channels} channel{'s' * (channels != 1)}, but {name} takes "
            f"{report.in_channels}: give the channels that it was trained on"
        )
    z, y, x = (
        size + 2 * margin for size, margin in zip(config.patch_size, config.halo, strict=True)
    )
    return report.size_problem((z, y, x), config.planes)
