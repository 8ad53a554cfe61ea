"""Which checkpoints of an nnU-Net v2 folder are meant: folds, and stages of their training."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.nnunet.plans import DATASET, PLANS

STAGES = ("checkpoint_final", "checkpoint_best", "checkpoint_latest")
"""What nnU-Net calls its checkpoints, in the order of preference."""

USUAL_FOLDS = tuple(f"fold_{number}" for number in range(5))

_SUFFIX = ".pth"


@dataclass(frozen=True)
class Stored:
    """A checkpoint in a folder: of which fold, and of which stage of its training."""

    path: Path

    @property
    def fold(self) -> str:
        """The folder it is in: "fold_0", "fold_all"."""
        return self.path.parent.name

    @property
    def stage(self) -> str:
        """What it is called: "checkpoint_final"."""
        return self.path.stem

    @property
    def name(self) -> str:
        """Both, as a caller names it: "fold_0/checkpoint_final"."""
        return f"{self.fold}/{self.stage}"

    @property
    def is_numbered(self) -> bool:
        """Whether it is one of a cross-validation, whose folds are averaged."""
        return re.fullmatch(r"fold_\d+", self.fold) is not None


@dataclass(frozen=True)
class Chosen:
    """The checkpoints to average, mostly all folds of one stage.

    Attributes
    ----------
    name : str
        As a caller names them.
    stored : tuple of Stored
        At least one.
    others : tuple of str
        What could be chosen instead.
    notes : tuple of str
        What is unusual, a line each.
    """

    name: str
    stored: tuple[Stored, ...]
    others: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def choose(path: Path, found: tuple[Stored, ...], weights: str | None) -> Chosen:
    """Return which checkpoints are to be averaged.

    By default the numbered folds, or `fold_all` if there are none, of the first of `STAGES` that
    any of them has.

    Parameters
    ----------
    path : Path
        What was opened, for messages.
    found : tuple of Stored
        In the order of preference; at least one.
    weights : str or None
        A name as in `Chosen`, or a fold, or a stage.

    Raises
    ------
    ModelError
        If there are no such weights.
    """
    choices = _choices(found)
    wanted = (weights or found[0].stage).removesuffix(_SUFFIX)
    if wanted not in choices:
        meant = (each.name for each in found if wanted in (each.fold, each.stage))
        wanted = next(meant, wanted)
    if wanted not in choices:
        raise ModelError(f"{path} has no weights {weights!r}; choose {', '.join(choices)}")
    return Chosen(wanted, choices[wanted], tuple(name for name in choices if name != wanted))


def _choices(found: tuple[Stored, ...]) -> dict[str, tuple[Stored, ...]]:
    """Return everything that can be chosen by its name: folds of a stage together, and each."""
    numbered = [each for each in found if each.is_numbered]
    together = {
        stage: tuple(each for each in numbered if each.stage == stage)
        for stage in dict.fromkeys(each.stage for each in numbered)
    }
    return {
        **{stage: folds for stage, folds in together.items() if len(folds) > 1},
        **{each.name: (each,) for each in found},
    }


def unusual(found: tuple[Stored, ...], taken: tuple[Stored, ...]) -> tuple[str, ...]:
    """Say in a note which folds are taken, if they are not the usual ones.

    Parameters
    ----------
    found, taken : tuple of Stored
        All there are, and those to be averaged.
    """
    folds = [each.fold for each in taken]
    if folds in ([*USUAL_FOLDS], ["fold_all"]):
        return ()
    left_out = dict.fromkeys(each.fold for each in found if each.is_numbered)
    missing = ", ".join(fold for fold in left_out if fold not in folds)
    without = f"; {missing} left out, without {taken[0].stage}" if missing else ""
    what = f"the mean of {', '.join(folds)}" if len(folds) > 1 else f"only {folds[0]}"
    return (f"weights: {what}; nnU-Net usually averages fold_0 to fold_4{without}",)


def found_in(path: Path) -> tuple[Path, tuple[Stored, ...]]:
    """Return the folder with the plans, and the checkpoints meant, in the order of preference.

    Parameters
    ----------
    path : Path
        That folder, a fold in it, a checkpoint in that, or its plans.json or dataset.json.

    Raises
    ------
    ModelError
        If there is no checkpoint.
    """
    if path.is_file() and path.name not in (PLANS, DATASET):
        return path.parent.parent, (Stored(path),)
    inside = path if path.is_dir() else path.parent
    one_fold = not (inside / PLANS).is_file()
    folder = inside.parent if one_fold else inside
    pattern = (
        f"{inside.name}/checkpoint_*{_SUFFIX}" if one_fold else f"fold_*/checkpoint_*{_SUFFIX}"
    )
    found = sorted(map(Stored, filter(Path.is_file, folder.glob(pattern))), key=_rank)
    if not found:
        raise ModelError(
            f"{path} has no {pattern}: an nnU-Net folder without trained weights; copy it with its "
            "fold_* folders"
        )
    return folder, tuple(found)


def _rank(stored: Stored) -> tuple[Any, ...]:
    """Return what sorts numbered folds first, then stages by preference, then folds by number."""
    stage = STAGES.index(stored.stage) if stored.stage in STAGES else len(STAGES)
    number = int(stored.fold.removeprefix("fold_")) if stored.is_numbered else 0
    return (not stored.is_numbered, stage, stored.stage, number, stored.fold)
