"""What the patches of a run predict at a voxel, found out on a thread."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.contributions import Contribution
from napari_seamless.gui.inspector.answers import Answer, Answers, Question
from napari_seamless.gui.inspector.explanation import Values, has_run
from napari_seamless.gui.inspector.pointing import Spot
from napari_seamless.gui.runs.worker import Task

if TYPE_CHECKING:  # loads torch, which opening the widget must not
    from napari_seamless.engine.run import Run


class PatchValues:
    """Predicts single patches of a run again, to say what each contributes to a voxel.

    Parameters
    ----------
    start_task : callable
        Does a task on a thread; see `worker.start_task`.
    changed : callable
        Called when more is known.
    picked : callable
        Gets the patch that was picked, by vol_id and raster index, and its input and prediction, or
        why there are none.
    """

    def __init__(
        self,
        start_task: Callable[[Task, Callable[[Any], None]], None],
        changed: Callable[[], None],
        picked: Callable[[int, int, Answer], None],
    ) -> None:
        self._answers = Answers(start_task, self._told)
        self._changed, self._tell_picked = changed, picked
        self._run: Run | None = None
        self._vol_id = 0
        self._patches: Sequence[Contribution] = ()
        self._spot: Spot | None = None
        self._picked: tuple[int, int] | None = None
        self.values: dict[int, Values | str] = {}
        """What patches predict at the voxel, (C,), by raster index; or why that is not known."""

    def watch(self, run: "Run | None") -> None:
        """Ask another run from now on; all that is known is forgotten."""
        self._run = run
        self._picked = None
        self._answers.forget()
        self.leave()

    def leave(self) -> None:
        """Ask nothing more about the voxel; a patch that was picked is still of interest."""
        self.values, self._spot, self._patches = {}, None, ()
        self._answers.want(self._picked_first())

    def look(self, vol_id: int, spot: Spot, patches: Sequence[Contribution]) -> None:
        """Note what is known of a voxel's values already, without asking for more."""
        if self._spot is None or (self._vol_id, self._spot.voxel) != (vol_id, spot.voxel):
            self.leave()
        self._vol_id, self._spot, self._patches = vol_id, spot, patches
        for patch in patches:
            self._note(patch)

    @property
    def shown(self) -> Values | None:
        """What the run shows at the voxel, (C,), with the patches that are blended in now."""
        answer = self._answers.get(self._shown_key)
        return answer[0] if isinstance(answer, tuple) else None

    def ask(self) -> None:
        """Find out what is missing: one patch after the other, the largest weight first."""
        run, spot = self._run, self._spot
        if run is None or spot is None:
            return
        ran = [each for each in self._patches if has_run(each)]
        missing = [each for each in ran if each.index not in self.values]
        questions = [_about(run, self._vol_id, each.index) for each in missing]
        if ran:
            questions.append(Question(self._shown_key, partial(_shown_at, run, self._vol_id, spot)))
        self._answers.want([*self._picked_first(), *questions])

    def pick(self, vol_id: int, index: int) -> None:
        """Get the input and the prediction of a patch, before all else."""
        if self._run is None:
            return
        self._picked = vol_id, index
        known = self._answers.get(self._picked)
        if known is None:
            self._answers.want(self._picked_first())
            self.ask()
        else:
            self._told(self._picked, known)

    @property
    def _shown_key(self) -> Hashable:
        voxel = None if self._spot is None else self._spot.voxel
        return "shown", self._vol_id, voxel, tuple(each.state for each in self._patches)

    def _picked_first(self) -> list[Question]:
        if self._run is None or self._picked is None:
            return []
        return [_about(self._run, *self._picked)]

    def _note(self, patch: Contribution) -> None:
        """Keep a patch's value: its prediction may be forgotten when others need the memory."""
        if patch.index in self.values:
            return
        answer = self._answers.get((self._vol_id, patch.index))
        if isinstance(answer, str):
            self.values[patch.index] = answer
        elif answer is not None:
            z, y, x = patch.voxel
            self.values[patch.index] = answer[1][:, z, y, x].copy()

    def _told(self, key: Hashable, answer: Answer) -> None:
        for patch in self._patches:
            self._note(patch)
        if self._picked is not None and self._picked == key:
            (vol_id, index), self._picked = self._picked, None
            self._tell_picked(vol_id, index, answer)
        self._changed()


def _about(run: "Run", vol_id: int, index: int) -> Question:
    return Question((vol_id, index), partial(_predicted, run, index, vol_id))


def _predicted(
    run: "Run", index: int, vol_id: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return a patch's input, and its prediction in the channels that are shown."""
    given, prediction = run.predict_patch(index, vol_id)
    channels = run.channels
    return given, prediction[channels.heads[channels.shown]]


def _shown_at(run: "Run", vol_id: int, spot: Spot) -> tuple[NDArray[np.float32]]:
    z, y, x = spot.voxel
    return (np.asarray(run.live[vol_id][:, z, y, x]),)
