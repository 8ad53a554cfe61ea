"""What a run reads of one volume: the input of each patch, and which patches need not run."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.box import Box
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import SourceError
from napari_seamless.engine.normalization import Normalizer, normalizer_of
from napari_seamless.engine.pipeline import Patch
from napari_seamless.engine.skip import check_mask, constant, outside
from napari_seamless.engine.source import Source, read_patch
from napari_seamless.engine.volume_plan import VolumePlan


class VolumeInput:
    """What a run reads of one volume; the base of `VolumeRun`, which see."""

    plan: VolumePlan

    def __init__(self, config: InferenceConfig, source: Source, mask: Source | None) -> None:
        self.skipped: NDArray[np.bool_] | None = None
        self.normalizer: Normalizer | None = None
        self._config = config
        self._source = source
        self._mask = mask

    def _take(self, plan: VolumePlan) -> None:
        """Take a plan, the first or a better one."""
        if self._mask is not None:
            check_mask(self._mask, plan)
        self.plan = plan
        self.skipped = None

    @property
    def skipped_count(self) -> int:
        """Patches that need not run, as far as known."""
        return 0 if self.skipped is None else int(np.count_nonzero(self.skipped))

    def read(self, index: int, out: NDArray[np.float32] | None = None) -> Patch:
        """Return the input of a patch, (C, z, y, x) float32; or why it cannot be read.

        Parameters
        ----------
        index : int
            Raster index of the patch.
        out : array, optional
            Of that shape and dtype: where it goes, and what is returned.

        Raises
        ------
        SourceError
            If it cannot be read and `on_error` is "stop".
        """
        return read_input(
            self._source, self.plan.input_box(index), self._config, self.normalizer, out
        )

    def prepare(self, may_go_on: Callable[[], bool]) -> None:
        """Find out what is done to the values; raise Stopped if `may_go_on` says no."""
        config = self._config
        if self.normalizer is None:
            self.normalizer = normalizer_of(
                self._source,
                config.normalization,
                config.percentiles,
                config.mean_std,
                may_go_on,
            )

    def survey(self, may_go_on: Callable[[], bool]) -> NDArray[np.bool_]:
        """Return which patches need not run, shape ``plan.grid.counts``; see `prepare`."""
        if self.skipped is None:
            skipped = np.zeros(self.plan.grid.counts, dtype=bool)
            if self._mask is not None:
                skipped |= outside(self.plan, self._mask, may_go_on)
            if self._config.skip_constant:
                skipped |= constant(self.plan, self._source, may_go_on)
            self.skipped = skipped
        return self.skipped


def read_input(
    source: Source,
    box: Box,
    config: InferenceConfig,
    normalizer: Normalizer | None,
    out: NDArray[np.float32] | None = None,
) -> Patch:
    """Return the input of a patch, or why it cannot be read; see `VolumeInput.read`."""
    try:
        return read_patch(source, box, config.padding, normalizer, out)
    except SourceError as error:
        if config.on_error == "stop":
            raise
        return error
