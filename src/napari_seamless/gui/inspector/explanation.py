"""Why a voxel is as it is, in numbers and words; no screen in here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from napari_seamless.engine.contributions import Contribution
from napari_seamless.engine.states import PatchState
from napari_seamless.gui.inspector.pointing import Spot

UNKNOWN = "…"
_CHANNELS_LISTED = 24
_CLOSE = 1e-4
"""Values that differ by less, relative to the larger, are the same to a reader."""

Values = NDArray[np.floating]
"""One per channel, shape (C,)."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """The patches that reach a voxel, and what is known of their values there.

    Attributes
    ----------
    spot : Spot
        The voxel.
    patches : sequence of Contribution
        The patches, the largest weight first.
    values : mapping of int to array or str
        What each patch predicts there, float32 (C,), by raster index; or why that is not known.
        Those that are missing are being computed.
    shown : array or None
        What the prediction's layer shows there, (C,); None while it is not known.
    is_planned : bool
        Whether there is no run yet. Then every patch counts as done.
    is_of_logits : bool
        Whether the activation follows the blending, so that the layer shows something else.
    """

    spot: Spot
    patches: Sequence[Contribution]
    values: Mapping[int, Values | str] = field(default_factory=dict)
    shown: Values | None = None
    is_planned: bool = False
    is_of_logits: bool = False

    @property
    def done(self) -> list[Contribution]:
        """The patches that are blended in."""
        return [each for each in self.patches if each.state == PatchState.DONE]

    def blended(self) -> NDArray[np.float64] | None:
        """Return ``sum(weight * value) / sum(weight)`` of the patches blended in, float64 (C,).

        None if there are none, or a value is not known.
        """
        weights, values = [], []
        for patch in self.done:
            value = self.values.get(patch.index)
            if value is None or isinstance(value, str):
                return None
            weights.append(patch.weight)
            values.append(np.asarray(value, dtype=float))
        return np.average(values, axis=0, weights=weights) if values else None

    def where(self, *, is_held: bool = False) -> str:
        """Return in words which voxel this is, and whether it is held."""
        voxel = ", ".join(map(str, self.spot.voxel))
        world = ", ".join(f"{at:.6g}" for at in self.spot.world)
        parts = [f"Voxel {voxel} (z, y, x)"]
        parts += [] if self.spot.time is None else [f"time {self.spot.time}"]
        parts += [f"channel {self.spot.channel}"] if self._channels > 1 else []
        parts += ["held"] if is_held else []
        return ", ".join(parts) + f"\nWorld {world}"

    def result(self) -> str:
        """Return the last line: the blended value, or why there is none."""
        if self.is_planned:
            return f"{_patches(len(self.patches))} will be blended here"
        failed = [each for each in self.patches if each.state == PatchState.FAILED]
        if failed:
            return f"No value: patch {failed[0].index} failed"
        if not self.done:
            return "Nothing is blended here" + ("" if self._is_settled else " yet")
        problems = [each for each in self.values.values() if isinstance(each, str)]
        if problems:
            return problems[0]
        return self._blended_line()

    def row(self, at: int) -> tuple[str, str, str, str, str]:
        """Return the texts of a patch: number, start, state, weight, value."""
        patch = self.patches[at]
        share = f" ({_percent(patch.share)})" if patch.share else ""
        state = "planned" if self.is_planned else patch.state.name.lower()
        start = ", ".join(map(str, patch.box.start))
        return str(patch.index), start, state, f"{patch.weight:.2g}{share}", self._value(patch)

    def tip(self, at: int) -> str:
        """Return what there is to say of a patch's values: all channels, or what went wrong."""
        patch = self.patches[at]
        value = self.values.get(patch.index)
        if isinstance(value, str):
            return value
        size = " x ".join(map(str, patch.box.shape))
        inside = ", ".join(map(str, patch.voxel))
        lines = [f"Patch {patch.index}, {size} voxels (z, y, x); this is its voxel {inside}"]
        if value is not None:
            lines += [f"channel {i}: {v:.6g}" for i, v in enumerate(value[:_CHANNELS_LISTED])]
        return "\n".join(lines)

    @property
    def _channels(self) -> int:
        known = [each for each in self.values.values() if not isinstance(each, str)]
        known += [] if self.shown is None else [self.shown]
        return len(known[0]) if known else 1

    @property
    def _is_settled(self) -> bool:
        return all(each.state != PatchState.WAITING for each in self.patches)

    def _value(self, patch: Contribution) -> str:
        value = self.values.get(patch.index)
        if isinstance(value, str):
            return "?"
        if value is not None:
            return f"{value[self.spot.channel]:.4g}"
        return UNKNOWN if has_run(patch) and not self.is_planned else ""

    def _blended_line(self) -> str:
        what = "Blended logit" if self.is_of_logits else "Blended value"
        blended = self.blended()
        if blended is None:
            return f"{what} {UNKNOWN}"
        value = float(blended[self.spot.channel])
        line = f"{what} {value:.6g} from {_patches(len(self.done))}"
        shown = None if self.shown is None else float(self.shown[self.spot.channel])
        if shown is None or np.isclose(shown, value, rtol=_CLOSE, atol=1e-6, equal_nan=True):
            return line
        return f"{line}; the layer shows {shown:.6g}"


def has_run(patch: Contribution) -> bool:
    """Return whether the network was asked about a patch, be it in vain."""
    return patch.state in (PatchState.DONE, PatchState.FAILED)


def _percent(share: float) -> str:
    """Return a share as so many percent, short enough for a table."""
    percent = 100 * share
    if percent < 0.1:
        return "< 0.1 %"
    return f"{percent:.1f} %" if percent < 10 else f"{percent:.0f} %"


def _patches(count: int) -> str:
    return f"{count} patch{'es' * (count != 1)}"
