"""nnU-Net v2 folders: plans.json, dataset.json and a checkpoint for every fold.

    Dataset001_Name/nnUNetTrainer__nnUNetPlans__3d_fullres/
        plans.json, dataset.json
        fold_0/checkpoint_final.pth, checkpoint_best.pth
        ...
        fold_all/checkpoint_final.pth

nnU-Net itself is not needed, only the package with its networks.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from napari_seamless.engine.errors import ModelError, UntrustedError
from napari_seamless.models.networks.architecture import build
from napari_seamless.models.nnunet.folds import Chosen, Stored, choose, found_in, unusual
from napari_seamless.models.nnunet.network import arguments_of, name_of, network_of, whole
from napari_seamless.models.nnunet.plans import DATASET, PLANS, Plan, plan_of, read_files
from napari_seamless.models.nnunet.settings import Known, known_of
from napari_seamless.models.opened import Opened, Wanted
from napari_seamless.models.sniff import pickle_refusal
from napari_seamless.models.tensors import torch_save
from napari_seamless.models.tensors.weights import StateDict, assembled, is_state_dict

KIND = "nnU-Net folder"


@dataclass(frozen=True, eq=False)
class Trained:
    """What is needed of one checkpoint."""

    fold: str
    tensors: StateDict
    trainer: str
    configuration: str
    mirror_axes: tuple[int, ...]
    epoch: int | None
    refused: tuple[str, ...]
    notes: tuple[str, ...] = ()


def open_checkpoint(wanted: Wanted) -> Opened:
    """Open an nnU-Net v2 folder, one of its folds, or one checkpoint in it.

    Several folds become one network, which gives the mean of their logits.

    Parameters
    ----------
    wanted : Wanted
        `path` is the folder, a fold in it, a checkpoint in that, or its plans.json or dataset.json;
        `weights` names a fold ("fold_0"), a stage ("checkpoint_best"), or both with "/" between.
        An architecture goes before that of the plans: for trainers that build their own network.

    Raises
    ------
    ModelError
        If a file is missing, damaged or not whole, the network is not to be had, the plans name
        what is not allowed without trust, or it is the second stage of a cascade.
    """
    if wanted.arguments and wanted.architecture is None:
        raise ModelError(
            f"{wanted.path} is an nnU-Net folder, whose plans say what its network is called with; "
            "leave arguments out, or give an architecture with them"
        )
    folder, found = found_in(wanted.path)
    plans, dataset = read_files(folder)
    chosen = choose(wanted.path, found, wanted.weights)
    if wanted.path in (folder, folder / PLANS, folder / DATASET) and wanted.weights is None:
        chosen = replace(chosen, notes=unusual(found, chosen.stored))
    trained = [_trained(each, folder, wanted.trust) for each in chosen.stored]
    plan = plan_of(folder, trained[0].configuration, plans, dataset)
    known = known_of(plan, trained[0].mirror_axes)
    return _opened(wanted, plan, known, chosen, trained)


def _trained(stored: Stored, folder: Path, trust: bool) -> Trained:
    """Read one checkpoint, and let go of its optimizer's state."""
    loaded = torch_save.read_trusted(stored.path, stored.path, trust, _has_weights)
    contents = loaded.contents
    content = contents.content if isinstance(contents.content, Mapping) else {}
    tensors: Any = content.get("network_weights")
    if loaded.module is not None and not is_state_dict(tensors):
        tensors = loaded.module.state_dict()
    if not is_state_dict(tensors) and contents.refused:
        raise UntrustedError(pickle_refusal(stored.path, f" ({', '.join(contents.refused)})"))
    if not is_state_dict(tensors):
        raise ModelError(
            f"{stored.path} is no checkpoint of nnU-Net v2: it has no 'network_weights'; give one "
            "that nnU-Net wrote"
        )
    started = content.get("init_args")
    named = folder.resolve().name.split("__")
    trainer, configuration = named[0], named[-1]
    if isinstance(started, Mapping):
        configuration = str(started.get("configuration", configuration))
    epoch = content.get("current_epoch")
    return Trained(
        stored.fold,
        tensors,
        str(content.get("trainer_name", trainer)),
        configuration,
        _axes(stored, content.get("inference_allowed_mirroring_axes")),
        epoch if isinstance(epoch, int) else None,
        contents.refused,
        loaded.notes,
    )


def _has_weights(content: Any) -> bool:
    return isinstance(content, Mapping) and is_state_dict(content.get("network_weights"))


def _axes(stored: Stored, axes: Any) -> tuple[int, ...]:
    """Return the axes of mirroring; a checkpoint without them allows none."""
    try:
        return tuple(int(axis) for axis in axes or ())
    except (TypeError, ValueError):
        raise ModelError(
            f"{stored.path} is no checkpoint of nnU-Net v2: its inference_allowed_mirroring_axes "
            f"are {str(axes)[:60]!r}, not numbers of axes"
        ) from None


# ------------------------------------------------------------------------------------ assembly


def _opened(
    wanted: Wanted, plan: Plan, known: Known, chosen: Chosen, trained: list[Trained]
) -> Opened:
    """Build a network for each fold, fill it, and make one of them."""
    trainer = trained[0].trainer
    given = wanted.architecture is not None
    architecture = wanted.architecture or name_of(plan.architecture)
    arguments = wanted.arguments if given else arguments_of(plan, trainer)

    def network(tensors: StateDict) -> nn.Module:
        if given:
            return build(architecture, arguments, trust=wanted.trust)
        return network_of(plan, arguments, tensors, wanted.trust)

    folds = [
        assembled(
            KIND,
            network(each.tensors),
            each.tensors,
            architecture=architecture,
            arguments=arguments,
            origin="given" if given else "file",
            notes=(*each.notes, *known.notes),
            input_shape=(None, len(plan.dataset.channel_names)) + (None,) * len(plan.axes.of),
            settings=known.settings,
            weights=chosen.name,
            other_weights=chosen.others,
            details=_details(plan, trained),
            refused=tuple(dict.fromkeys(name for one in trained for name in one.refused)),
        )
        for each in trained
    ]
    for each, fold in zip(trained, folds, strict=True):
        if fold.module is None:
            return replace(fold, notes=(*_misfit(each, given), *chosen.notes, *fold.notes))
    notes = (*chosen.notes, *_trainer_note(trainer), *folds[0].notes)
    modules = [fold.module for fold in folds if fold.module is not None]
    return replace(
        folds[0],
        module=whole(modules, plan.axes, known.limits),
        tensors=_together(trained, folds),
        notes=notes,
    )


def _together(trained: list[Trained], folds: list[Opened]) -> dict[str, torch.Tensor]:
    """Return the tensors of all folds, each once.

    The networks of nnU-Net have the same tensor under several names (the decoder knows the
    encoder, a block knows its layers twice), which would count as parameters several times.
    """
    together: dict[str, torch.Tensor] = {}
    for each, fold in zip(trained, folds, strict=True):
        before = f"{each.fold}." if len(folds) > 1 else ""
        once: dict[Any, tuple[str, torch.Tensor]] = {}
        for name, tensor in fold.tensors.items():
            same = (tensor.data_ptr(), tensor.shape, tensor.stride())
            once.setdefault(same, (before + name, tensor))
        together |= dict(once.values())
    return together


def _details(plan: Plan, trained: list[Trained]) -> dict[str, Any]:
    plans, dataset = plan.plans, plan.dataset
    epochs = dict.fromkeys(each.epoch for each in trained if each.epoch is not None)
    known = {
        "dataset": plans.dataset_name,
        "trainer": trained[0].trainer,
        "plans": plans.plans_name,
        "configuration": plan.name,
        "channels": list(dataset.channel_names.values()),
        "labels": dict(dataset.labels),
        "epoch": ", ".join(map(str, epochs)),
        "reader": plans.image_reader_writer,
    }
    return {name: value for name, value in known.items() if value}


def _trainer_note(trainer: str) -> tuple[str, ...]:
    if trainer.startswith("nnUNetTrainer"):
        return ()
    return (
        f"trained by {trainer}, not one of nnU-Net's own trainers: the network was built from the "
        "plans, and every tensor fits it; what else that trainer changes is not known",
    )


def _misfit(trained: Trained, given: bool) -> tuple[str, ...]:
    what = "that was given" if given else f"of the plans; {trained.trainer} may have built another"
    return (f"{trained.fold} does not fit the network {what}",)
