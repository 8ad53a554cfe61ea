"""One inference from start to end, as an iterator of small events.

Voxels stay in the accumulators; an event says only how far the run is and which voxels changed. The
widget, the command line and the tests all drain the same events.
"""

from collections.abc import Iterator
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.accumulator import BlendAccumulator
from napari_seamless.engine.box import Box
from napari_seamless.engine.errors import ConfigError, EndedError
from napari_seamless.engine.events import Event
from napari_seamless.engine.forecast import Forecast
from napari_seamless.engine.lazy import LazyArray
from napari_seamless.engine.outputs import Channels
from napari_seamless.engine.results import Volume
from napari_seamless.engine.work import Work


class Run(Work):
    """Blended inference over opened sources; iterate over it to do the work, a batch per event.

    Parameters
    ----------
    sources : sequence of Source
        The volumes.
    module : torch.nn.Module
        The network.
    config : InferenceConfig
        The settings.
    stores : sequence of Store, optional
        One per volume: where its prediction is written, chunk by finished chunk.
    provenance : mapping, optional
        What the written files shall say about the network, JSON-like.
    masks : sequence of Source, optional
        One per volume: patches that reach no voxel of it that is not 0 are not run.
    identities : sequence of mapping, optional
        One per volume, JSON-like: what else decides the numbers. A store that was left by a run
        with another one is not resumed.
    memory : int, optional
        Bytes for chunks of the source, finished voxels and open sums; what does not fit stays in
        the store, or goes to files beside it. A quarter of the free memory by default. Without a
        store everything is in memory.

    Attributes
    ----------
    plan : InferencePlan
        What will be done. Replaced at the first batch if the network's output turns out to be
        smaller than its input.
    status : str
        "ready", "running", and then "complete", "partial" (cancelled, or without patches that could
        not be read) or "failed".
    failures : dict of int to SeamlessError
        What went wrong with which volume, by vol_id.
    volumes : list of VolumeRun
        What is done of each volume, by vol_id.
    stages : Stages
        How long reading, the network, blending and writing were at work so far.
    is_waiting : bool
        Whether all that is looked at is done, and the rest is held back: see `preview`.
    inputs : tuple of int
        To which input each volume belongs: the time points of a series share one.

    Raises
    ------
    UnusableInputError
        If settings, sources and machine do not fit together. Nothing is computed before iteration.

    Notes
    -----
    `focus`, `pause`, `resume` and `cancel` may be called from any thread and return at once; they
    take effect at the next batch. What goes wrong with one of several volumes is put into
    `failures`, and the others are finished. It is raised to whoever iterates if all volumes fail,
    or if no volume can do better: a setting or network that does not fit.
    """

    _forecast_events = 2
    """Batches that are done before a forecast."""

    @property
    def live(self) -> list[LazyArray]:
        """The partial prediction of each volume: float32 (C, Z, Y, X), NaN where uncovered.

        In the unit of the network's output after the activation, on the grid of the output. How
        many channels a network returns is known after its first batch; asked before that, this
        computes that batch (so it waits while the run is paused) and keeps its event for the
        iteration.

        Raises
        ------
        EndedError
            If the run ended before its first batch.
        """
        shown = self.channels.heads[self.channels.shown]
        return [volume.live(shown) for volume in self.volumes]

    @property
    def channels(self) -> Channels:
        """What the channels of the network's output are; see `live` for when that is known.

        An error of the first batch is raised here, and again to whoever iterates.

        Raises
        ------
        EndedError
            If the run ended before its first batch.
        """
        if self._channels is None:
            self._events.work_out(1)
        if self._channels is None:
            raise EndedError("the run ended before its first batch; there is nothing to see")
        return self._channels

    @property
    def weights(self) -> list[LazyArray]:
        """The weight sum so far of each volume: float32 (Z, Y, X), 0 where uncovered.

        That is ``sum(w)`` over the patches done, `w` being the window that `blending` names.
        """
        return [volume.following(BlendAccumulator.weights) for volume in self.volumes]

    @property
    def coverage(self) -> list[LazyArray]:
        """How many patches have reached each voxel so far, for each volume: uint16 (Z, Y, X)."""
        return [volume.following(BlendAccumulator.coverage) for volume in self.volumes]

    @property
    def disagreement(self) -> list[LazyArray]:
        """The disagreement so far of each volume, like `live`: float32 (C, Z, Y, X).

        The weighted standard deviation ``sqrt(sum(w p^2) / sum(w) - (sum(w p) / sum(w))^2)`` of
        the predictions `p` of the patches that reach a voxel, in the unit of the prediction.

        Raises
        ------
        ConfigError
            If the settings do not ask for it.
        """
        if not self.plan.config.disagreement:
            raise ConfigError("the run has no disagreement; ask for it with disagreement=True")
        return [volume.live(self.channels.disagreement) for volume in self.volumes]

    @property
    def batch_size(self) -> int:
        """Patches per call of the network: fewer than asked for once memory ran out."""
        return min(self.plan.config.batch_size, self._batched.limit or self.plan.config.batch_size)

    def order(self, vol_id: int = 0) -> NDArray[np.intp]:
        """Return the patches of a volume not yet taken, in the order in which they will run.

        What was asked for with `focus` or `preview` counts at once, also while the run is paused.

        Parameters
        ----------
        vol_id : int
            Which volume.

        Returns
        -------
        ndarray of int, shape (patches,)
            Raster indices.
        """
        volume = self.volumes[vol_id]
        if not self._control.has_new_focus(vol_id):
            return volume.order
        focus = self._control.focus_of(vol_id)
        box = None if focus.box is None else volume.plan.output_box(focus.box)
        return volume.order_after(box, focus.is_only)

    def running(self, vol_id: int = 0) -> list[int]:
        """Return the patches of a volume that the network has now.

        Parameters
        ----------
        vol_id : int
            Which volume.

        Returns
        -------
        list of int
            Raster indices.
        """
        volume = self.volumes[vol_id]
        at_work = [] if volume.schedule is None else volume.schedule.at_work
        return [index for index in at_work if index not in volume.accumulator]

    def predict_patch(
        self, index: int, vol_id: int = 0
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Predict one patch by itself, once more; nothing is blended.

        May be called from any thread, also when the run has ended; while it goes on, this waits for
        the batch at work.

        Parameters
        ----------
        index : int
            Raster index of the patch.
        vol_id : int
            Of which volume.

        Returns
        -------
        patch : ndarray of float32, shape (C, z, y, x)
            What the network gets: normalised, with the halo.
        prediction : ndarray of float32, shape (C', z', y', x')
            All channels that are blended, before blending: see `channels`.

        Raises
        ------
        SeamlessError
            If the patch cannot be read or predicted, or the volume has not begun.
        """
        patch = self.volumes[vol_id].patch(index)
        return patch, self._batched(patch[None].copy())[0].cpu().numpy()

    def forecast(self) -> Forecast:
        """Say what the run will take; like `live`, this computes the first batch if need be.

        And the second one, which tells the network's pace: the first call also sets things up.

        Returns
        -------
        Forecast
            Patches, seconds, bytes of memory and disk; as text it is one line.

        Raises
        ------
        EndedError
            If the run ended before its first batch.
        """
        _ = self.channels
        self._events.work_out(self._forecast_events)
        channels, left = self.channels, self.total - self.done
        needs = [volume.needs(channels, self._memory) for volume in self.volumes]
        resumed = sum(volume.resumed for volume in self.volumes)
        return Forecast.of(
            needs,
            patches=self.total - self.spared,
            redundancy=self.plan.redundancy,
            seconds=left * self._seconds_per_patch,
            skipped=self.spared - resumed,
            resumed=resumed,
        )

    def outputs(self, vol_id: int = 0) -> dict[str, Volume]:
        """Return all that is known of a volume.

        Parameters
        ----------
        vol_id : int
            Which volume.

        Returns
        -------
        dict of str to array-like (C, Z, Y, X)
            "main": the prediction, float32. "spread" and "disagreement", standard deviations in its
            unit, float32; "labels", uint8 or uint16: each if asked for. "heads/NAME": the other
            heads, float32. NaN where nothing is predicted yet, in labels 0.

        Raises
        ------
        EndedError
            If the run ended before its first batch.
        """
        return self.volumes[vol_id].outputs(self.channels)

    def files(self, vol_id: int = 0) -> dict[str, Volume]:
        """Return the `outputs` of a volume as the numbers that are saved.

        Parameters
        ----------
        vol_id : int
            Which volume.

        Returns
        -------
        dict of str to array-like (C, Z, Y, X)
            Of `output_dtype`, times `intensity_scale`, rounded and clipped; labels as they are.

        Raises
        ------
        EndedError
            If the run ended before its first batch.
        """
        return self.volumes[vol_id].files(self.channels)

    def results(self) -> list[NDArray[np.float32]]:
        """Return the prediction of each volume as it is now, all of it in memory.

        Returns
        -------
        list of ndarray of float32, shape (C, Z, Y, X)
            By vol_id. NaN where nothing is predicted.

        Raises
        ------
        EndedError
            If the run ended before its first batch.
        """
        return [np.asarray(volume.outputs(self.channels)["main"]) for volume in self.volumes]

    def focus(self, box: Box | None, vol_id: int = 0) -> None:
        """Run the patches that touch a box next, nearest to its centre first.

        Parameters
        ----------
        box : Box or None
            In voxels of the source, (Z, Y, X); None goes on layer after layer.
        vol_id : int
            Of which volume.

        Raises
        ------
        TypeError
            If it is no Box.
        IndexError
            If there is no such volume.
        """
        if box is not None and not isinstance(box, Box):
            raise TypeError(
                f"focus {box!r} is no Box; give Box((z, y, x), (z_stop, y_stop, x_stop))"
            )
        if not 0 <= vol_id < len(self.plan.volumes):
            raise IndexError(f"vol_id {vol_id} is not one of the {len(self.plan.volumes)} volumes")
        self._control.focus(box, vol_id)

    def preview(self, is_only: bool = True) -> None:
        """Predict nothing but what `focus` says, and wait when that is done; or all of it again.

        Parameters
        ----------
        is_only : bool
            Whether the rest is held back; False takes it back.
        """
        self._control.preview(is_only)

    def pause(self) -> None:
        """Stop before the next batch until `resume` or `cancel` is called from another thread."""
        self._control.pause()

    def resume(self) -> None:
        """Go on after `pause`."""
        self._control.resume()

    def cancel(self) -> None:
        """End the run before the next batch; what is done stays, as a partial result."""
        self._control.cancel()

    def close(self) -> None:
        """End the run now if it has not ended; what is done stays readable."""
        self.cancel()
        try:
            self._events.close()
        finally:
            for volume in self.volumes:
                volume.close()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        while True:
            news = self._control.news
            event = self._events.next()
            if event is not None:
                return event
            self.is_waiting = True
            self._control.wait_for_news(news)
            self.is_waiting = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
