"""The output of one volume: begun, filled chunk by finished chunk, and ended."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.accumulator import BlendAccumulator
from napari_seamless.engine.box import Box
from napari_seamless.engine.chunks import ChunkGrid
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.finished import InMemory, InStore
from napari_seamless.engine.lazy import LazyArray, Ranges
from napari_seamless.engine.outputs import Channels
from napari_seamless.engine.results import (
    LABELS,
    Volume,
    as_predicted,
    as_stored,
    place_of,
    specs_of,
)
from napari_seamless.engine.stages import Stages
from napari_seamless.engine.store import Store
from napari_seamless.engine.values import scale_of

SETTINGS_OF_A_MACHINE = {
    *("batch_size", "device", "on_error"),
    *("channels_last", "graph", "threads"),
}
"""Settings that a run may be resumed without: they decide no more than how numbers are rounded."""


def deciding(config: InferenceConfig, planes: str) -> dict[str, Any]:
    """Return the settings that decide the numbers, JSON-like.

    What stands for another value ("auto", or None for a default) is that value: whoever resumes may
    have been told it by a checkpoint.

    Parameters
    ----------
    config : InferenceConfig
        The settings.
    planes : str
        What its `planes` are for the network.
    """
    settings = config.model_dump(mode="json", exclude=SETTINGS_OF_A_MACHINE)
    scale = scale_of(config.output_dtype, config.intensity_scale)
    return {**settings, "planes": planes, "intensity_scale": scale}


class Written:
    """What a run writes of a volume.

    Parameters
    ----------
    store : Store
        Where it is written.
    config : InferenceConfig
        The settings.
    identity : mapping
        What decides the numbers, JSON-like, the settings ("config") among it.

    Attributes
    ----------
    store : Store
        Where it is written.
    has_begun : bool
        Whether there is something to end.
    is_in_place : bool
        Whether the prediction is where it belongs, whole or not.
    """

    def __init__(self, store: Store, config: InferenceConfig, identity: Mapping[str, Any]) -> None:
        self.is_in_place = False
        self.store = store
        self._config = config
        self._identity = identity
        self.has_begun = False

    def begin(self, chunks: ChunkGrid, channels: Channels, facts: Mapping[str, Any]) -> set[int]:
        """Begin it; return the chunks that an earlier run has finished.

        Raises
        ------
        OutputError
            If it cannot be written there, or the run that was left there is another one.
        """
        config = {**self._identity["config"], "head": channels.shown}
        identity = {**self._identity, "config": config, "chunks": chunks.facts}
        specs = specs_of(channels, self._config)
        found = set(self.store.begin(specs, chunks, identity, facts))
        self.has_begun = True  # from now on it is to be ended
        return found

    def finished(self, channels: Channels, kept: InMemory | None, stages: Stages) -> InStore:
        """Return where finished chunks go, and in memory too if `kept` is given."""
        store, config = self.store, self._config

        def read_back(box: Box, wanted: slice) -> NDArray[np.float32]:
            name, part = place_of(wanted, channels)
            return as_predicted(name, store.read(name, box)[part], config)

        return InStore(
            store, lambda values: as_stored(values, channels, config), read_back, kept, stages
        )

    def write_open(self, accumulator: BlendAccumulator, channels: Channels) -> None:
        """Write what is open as it is now."""
        for i in accumulator.open:
            box = accumulator.chunks[i]
            values = accumulator.partial(box, slice(0, channels.total))
            self.store.write(None, box, as_stored(values, channels, self._config))

    def end(self, facts: Mapping[str, Any]) -> None:
        """Say how it ended, and put it in its place, be it that nothing is done."""
        self.store.finish(facts)
        self.is_in_place = True

    def labels(self, computed: Volume, accumulator: BlendAccumulator) -> LazyArray:
        """Return labels that are read where chunks are finished, and computed elsewhere.

        What is read back of the prediction is rounded; the labels were made before that.
        """

        def read(ranges: Ranges) -> NDArray[Any]:
            box = Box.of(ranges[1:])
            labels = np.empty((computed.shape[0], *box.shape), computed.dtype)
            finished, chunks = accumulator.finished, accumulator.chunks
            for i in chunks.touching(box):
                piece = chunks[i].intersection(box)
                labels[:, *piece.within(box)] = (
                    self.store.read(LABELS, piece)
                    if i in finished
                    else np.asarray(computed[:, *piece.slices])
                )
            return labels[ranges[0]]

        return LazyArray(computed.shape, computed.dtype, read)
