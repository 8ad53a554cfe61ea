"""What the overlays are about: a run as far as it has come, or one that is being planned."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.blending import Window, coverage_array, weights_array
from napari_seamless.engine.box import Box
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.grid import PatchGrid
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.schedule import Schedule
from napari_seamless.engine.states import PatchState
from napari_seamless.engine.volume_plan import VolumePlan, volume_plan, window_of
from napari_seamless.gui.runs.request import Plan, source_of
from napari_seamless.gui.space.geometry import Place, level_step, place_of
from napari_seamless.gui.space.series import stacked
from napari_seamless.gui.space.view import scaled_down

if TYPE_CHECKING:  # loads torch, which opening the widget must not
    from napari_seamless.engine.run import Run


class CellState(IntEnum):
    """What is shown of a patch; 0 is for voxels of no patch."""

    WAITING = 1
    RUNNING = 2
    DONE = 3
    SKIPPED = 4
    FAILED = 5


_SHOWN_AS = np.zeros(len(PatchState), np.uint8)
for _state in PatchState:
    _SHOWN_AS[_state] = CellState[_state.name]


@dataclass(frozen=True, eq=False)
class Subject(ABC):
    """What the overlays are about.

    Attributes
    ----------
    place : Place
        Where the prediction is on the layer that it is made from.
    plan : VolumePlan
        Of the first volume; all time points of a series have the same patches.
    window : Window
        Of every patch.
    config : InferenceConfig
        The settings.
    level : int
        Of the layer, if it is multiscale.
    times : tuple of int
        Time points of a series by vol_id; none of anything else.
    """

    place: Place
    plan: VolumePlan
    window: Window
    config: InferenceConfig
    level: int
    times: tuple[int, ...]
    _layer_shape: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_layer_shape", tuple(self.place.layer.data.shape))

    @property
    def is_outdated(self) -> bool:
        """Whether the layer has got data of another shape, so that the patches do not fit it."""
        return tuple(self.place.layer.data.shape) != self._layer_shape

    @property
    def grid(self) -> PatchGrid:
        """The patches, in the frame of the prediction."""
        return self.plan.grid

    @property
    def volumes(self) -> range:
        """The vol_id of every volume."""
        return range(max(1, len(self.times)))

    @abstractmethod
    def states(self, vol_id: int = 0) -> NDArray[np.uint8]:
        """Return the `CellState` of every patch, uint8 of shape ``grid.counts``; a copy."""

    @abstractmethod
    def order(self, vol_id: int = 0, looked_at: Box | None = None) -> NDArray[np.intp]:
        """Return raster indices of the patches not yet taken, in the order in which they will run.

        Parameters
        ----------
        vol_id : int
            Of which volume.
        looked_at : Box or None
            Voxels of the layer that are on the screen; a run knows by itself.
        """

    def weights_of(self, vol_id: int) -> LazyArray:
        """Return the weight sum of one volume, float32 (Z, Y, X)."""
        return weights_array(self.grid, self.window, lambda: self._done(vol_id))

    def coverage_of(self, vol_id: int) -> LazyArray:
        """Return the patches per voxel of one volume, uint16 (Z, Y, X)."""
        return coverage_array(self.grid, lambda: self._done(vol_id))

    def prediction_of(self, vol_id: int) -> LazyArray | None:
        """Return the prediction of one volume, float32 (C, Z, Y, X), NaN where there is none.

        None before the first batch.
        """
        return None

    def disagreement_of(self, vol_id: int) -> LazyArray | None:
        """Return the disagreement of one volume, as its prediction; None also if not summed."""
        return None

    def chunks_finished(self, vol_id: int | None) -> int:
        """Return how many chunks of a volume are final.

        Of a run on a cluster the prediction is known there only, later than its patches are done.
        """
        return 0

    def _done(self, vol_id: int) -> NDArray[np.bool_]:
        """Return which patches weights and coverage are of."""
        done: NDArray[np.bool_] = self.states(vol_id) == CellState.DONE
        return done

    @cached_property
    def weights(self) -> LazyArray:
        """The weight sum, (Z, Y, X) or (T, Z, Y, X); so far, or at the end of a planned run."""
        return self.in_time([self.weights_of(vol_id) for vol_id in self.volumes])

    @cached_property
    def coverage(self) -> LazyArray:
        """Patches per voxel, as `weights`."""
        return self.in_time([self.coverage_of(vol_id) for vol_id in self.volumes])

    @property
    def prediction(self) -> LazyArray | None:
        """The prediction, (C, Z, Y, X) or (T, C, Z, Y, X); None before the first batch."""
        return self._known([self.prediction_of(vol_id) for vol_id in self.volumes])

    @property
    def disagreement(self) -> LazyArray | None:
        """The disagreement, as `prediction`; None also if it is not summed."""
        return self._known([self.disagreement_of(vol_id) for vol_id in self.volumes])

    def _known(self, volumes: list[LazyArray | None]) -> LazyArray | None:
        known = [volume for volume in volumes if volume is not None]
        return self.in_time(known) if len(known) == len(volumes) else None

    def in_time(self, volumes: Sequence[LazyArray]) -> LazyArray:
        """Return volumes as one series if the layer has time, else the only one."""
        axis = self.place.axes.find("T")
        if axis < 0:
            return volumes[0]
        length = int(self.place.layer.data.shape[axis])
        return stacked(dict(zip(self.times, volumes, strict=True)), length)

    def vol_id_at(self, time: int | None) -> int | None:
        """Return the volume of a time point; None if it is not predicted."""
        if time is None or not self.times:
            return 0
        return self.times.index(time) if time in self.times else None


@dataclass(frozen=True, eq=False)
class Planned(Subject):
    """A run that is being planned: its weights and coverage are those at its end."""

    def states(self, vol_id: int = 0) -> NDArray[np.uint8]:
        """Return that all patches wait."""
        return np.full(self.grid.counts, CellState.WAITING, np.uint8)

    def order(self, vol_id: int = 0, looked_at: Box | None = None) -> NDArray[np.intp]:
        """Return all patches, those looked at first."""
        schedule = Schedule(self.grid)
        box = scaled_down(looked_at, level_step(self.place.layer, self.level))
        schedule.focus(None if box is None else self.plan.output_box(box))
        return schedule.order

    def _done(self, vol_id: int) -> NDArray[np.bool_]:
        return np.ones(self.grid.counts, dtype=bool)


@dataclass(frozen=True, eq=False)
class Running(Subject):
    """A run, as far as it has come.

    Attributes
    ----------
    run : Run
        The run.
    """

    run: "Run"

    def states(self, vol_id: int = 0) -> NDArray[np.uint8]:
        """Return what has become of each patch."""
        states = _SHOWN_AS[np.asarray(self.run.volumes[vol_id].accumulator.states)]
        at_work = self.run.running(vol_id)
        states.flat[at_work] = CellState.RUNNING
        return states

    def order(self, vol_id: int = 0, looked_at: Box | None = None) -> NDArray[np.intp]:
        """Return the patches that the run has not taken yet."""
        return np.asarray(self.run.order(vol_id), np.intp)

    def weights_of(self, vol_id: int) -> LazyArray:
        """Return the weight sum of one volume so far."""
        return self.run.weights[vol_id]

    def coverage_of(self, vol_id: int) -> LazyArray:
        """Return the patches per voxel of one volume so far."""
        return self.run.coverage[vol_id]

    def prediction_of(self, vol_id: int) -> LazyArray | None:
        """Return the partial prediction; asked before the first batch, the run would do it here."""
        return self.run.live[vol_id] if self._has_begun else None

    def disagreement_of(self, vol_id: int) -> LazyArray | None:
        """Return how far patches are apart so far."""
        if not self.config.disagreement or not self._has_begun:
            return None
        return self.run.disagreement[vol_id]

    def chunks_finished(self, vol_id: int | None) -> int:
        """Return how many chunks of a volume are final."""
        return 0 if vol_id is None else len(self.run.volumes[vol_id].accumulator.finished)

    @property
    def _has_begun(self) -> bool:
        return any(volume.begun for volume in self.run.volumes)


def planned(plan: Plan) -> Subject:
    """Return the subject of a planned run."""
    config = plan.config
    volume = volume_plan(0, source_of(plan.image, plan.level), config, config.patch_size)
    return Planned(
        place_of(plan.image, plan.level, volume),
        volume,
        window_of(config, config.patch_size),
        config,
        plan.level,
        plan.times,
    )


def running(plan: Plan, run: "Run") -> Subject:
    """Return the subject of a run as far as it has come."""
    volume = run.plan.volumes[0]
    return Running(
        place_of(plan.image, plan.level, volume),
        volume,
        run.plan.window,
        plan.config,
        plan.level,
        plan.times,
        run,
    )
