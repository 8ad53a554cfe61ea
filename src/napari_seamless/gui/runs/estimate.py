"""What a run will take, said in the form before it is started."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from superqt.utils import qdebounced

from napari_seamless.engine.box import Triple
from napari_seamless.engine.errors import SeamlessError, one_line
from napari_seamless.engine.forecast import Forecast
from napari_seamless.engine.volume_plan import volume_plan
from napari_seamless.gui.checkpoint.opening import Opener
from napari_seamless.gui.runs.request import Inputs, Plan, Request, inputs_of, source_of
from napari_seamless.gui.runs.worker import Task

if TYPE_CHECKING:  # loads torch, which opening the widget must not
    from napari_seamless.gui.runs.measuring import Meter

REST_MS = 1000
"""So long a form must be at rest before the network is measured."""

_Start = Callable[[Task, Callable[[Any], None]], None]


@dataclass(frozen=True)
class Estimate:
    """What is known of runs before they start.

    Attributes
    ----------
    patches : int
        That are asked for, of all images.
    whole : int
        Of all of the images.
    forecast : Forecast or None
        What the runs will say after their first batches, those of all of them together; None if
        the network was not measured.
    is_most : bool
        Whether some patches may turn out to be done already, or to need no run.
    note : str
        Why there is no forecast, or what it leaves out.
    """

    patches: int
    whole: int
    forecast: Forecast | None = None
    is_most: bool = False
    note: str = ""

    def __str__(self) -> str:
        counted = f"{self.patches:,} patch{'es' * (self.patches != 1)}"
        text = counted if self.forecast is None else str(self.forecast)
        most = "at most " if self.is_most else ""
        more = [f"all of it would be {self.whole:,}"] if self.whole != self.patches else []
        return "; ".join([most + text, *more, *filter(None, [self.note])])


class Estimator:
    """Says what the runs that the form asks for will take. All methods are the main thread's.

    The number of patches is said at once. Time, memory and output follow when the form was at rest
    for a second and the network was called a few times; what that showed is kept, so that it is
    called again only with settings that change how it is called.

    Parameters
    ----------
    start_task : callable
        Does work in the background; see `worker.start_task`.
    say : callable
        Shows a line; "" hides it.
    opener : Opener
        Opens checkpoints; shared with the runs, which wait until nothing is measured.
    """

    def __init__(self, start_task: _Start, say: Callable[[str], None], opener: Opener) -> None:
        self._start_task = start_task
        self._say = say
        self._opener = opener
        self._requests: tuple[Request, ...] = ()
        self._unwanted = threading.Event()
        self._meter: Meter | None = None
        self._measure_soon = qdebounced(self._measure, timeout=REST_MS)

    def update(self, *requests: Request | None) -> None:
        """Follow the form: what it asks for now, one request per image; None if it cannot be run.

        None, too, while a run is on: then nothing is measured.
        """
        asked = tuple(request for request in requests if request is not None)
        if asked == self._requests:
            return
        self._stop()
        self._requests = asked
        try:
            self._say(str(counted(asked)) if asked else "")
        except SeamlessError:  # the form says what cannot work
            self._requests = ()
            self._say("")
        if self._requests:
            self._measure_soon()

    def close(self) -> None:
        """Drop what is being measured."""
        self._stop()
        self._requests = ()

    def _stop(self) -> None:
        self._measure_soon.cancel()
        self._unwanted.set()

    def _measure(self) -> None:
        requests, self._unwanted = self._requests, threading.Event()
        try:
            inputs = [inputs_of(request) for request in requests]
        except SeamlessError:  # the form says what cannot work
            return
        task = partial(self._estimated, requests, inputs, self._unwanted)
        self._start_task(task, partial(self._found, self._unwanted))

    def _found(self, unwanted: threading.Event, estimate: Estimate) -> None:
        if not unwanted.is_set():
            self._say(str(estimate))

    def _estimated(
        self, requests: Sequence[Request], inputs: Sequence[Inputs], unwanted: threading.Event
    ) -> Estimate:
        """Return all that can be said; on a thread."""
        estimate = counted(requests)
        if any(request.workers is not None for request in requests):
            return replace(estimate, note="time and memory depend on the workers")
        try:
            with self._opener.calling:
                found = [
                    self._forecast(*each, unwanted) for each in zip(requests, inputs, strict=True)
                ]
        except (Exception, SystemExit) as error:  # passed on to the user
            return replace(estimate, note=f"time and memory are not known: {one_line(error)}")
        forecasts, cores = zip(*found, strict=True)
        return replace(counted(requests, cores), forecast=_together(forecasts))

    def _forecast(
        self, request: Request, inputs: Inputs, unwanted: threading.Event
    ) -> tuple[Forecast, Triple]:
        """Return what one run will take, and the voxels that a patch of it contributes."""
        from napari_seamless.gui.runs.measuring import Meter, forecast_of

        self._meter = self._meter or Meter()
        plan, model = request.plan, self._opener.model(request.choice)
        channels = source_of(plan.image, plan.level).shape[0]
        measured = self._meter.measured(model, plan.config, channels, unwanted.is_set)
        return forecast_of(request, inputs, measured), measured.core_size


def counted(requests: Sequence[Request], cores: Sequence[Triple] = ()) -> Estimate:
    """Return how many patches runs have; that takes no network.

    Parameters
    ----------
    requests : sequence of Request
        What is asked for.
    cores : sequence of tuple of int
        Voxels (Z, Y, X) that a patch of each contributes; by default the patch size.

    Raises
    ------
    UnusableInputError
        If a region or patch does not fit its image.
    """
    sizes = cores or [request.plan.config.patch_size for request in requests]
    asked = [_patches(each.plan, size) for each, size in zip(requests, sizes, strict=True)]
    return Estimate(
        patches=sum(patches for patches, _ in asked),
        whole=sum(whole for _, whole in asked),
        is_most=any(
            each.resume or each.mask is not None or each.plan.config.skip_constant
            for each in requests
        ),
    )


def _patches(plan: Plan, core_size: Triple) -> tuple[int, int]:
    """Return how many patches are asked for, and how many all of the image has."""
    source = source_of(plan.image, plan.level)
    everything = plan.config.model_copy(update={"region": None})
    part, whole = (
        len(volume_plan(0, source, config, core_size).cores) for config in (plan.config, everything)
    )
    return part * max(1, len(plan.times)), whole * max(1, plan.length)


def _together(forecasts: Sequence[Forecast]) -> Forecast:
    """Return what runs one after the other take."""
    patches = sum(each.patches for each in forecasts)
    return Forecast(
        patches=patches,
        redundancy=sum(each.redundancy * each.patches for each in forecasts) / patches,
        skipped=0,
        resumed=0,
        seconds=sum(each.seconds for each in forecasts),
        memory=max(each.memory for each in forecasts),
        scratch=max(each.scratch for each in forecasts),
        output=sum(each.output for each in forecasts),
    )
