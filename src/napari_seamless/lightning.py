"""Whole volumes, blended, out of Lightning's test and predict loops.

batch {"image", "pos"} -> the module's own step -> BlendedWriter -> sums of this process
                                                        at the end: sums of all -> file
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Subset
from torch.utils.hooks import RemovableHandle

from napari_seamless.dataset import InferenceVolumeDataset
from napari_seamless.draining import rescue
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import (
    ConfigError,
    OutputError,
    SeamlessError,
)
from napari_seamless.engine.grid import Overlap
from napari_seamless.io.export import write_arrays
from napari_seamless.io.stores import open_store, versions
from napari_seamless.io.stores.common import check_room
from napari_seamless.shares import Share, raise_everywhere
from napari_seamless.steps import heads_of_step, patches_in, positions_of
from napari_seamless.volumes import PathLike, output_paths, refuse_input_as_output

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ModuleNotFoundError as error:
    raise ImportError(
        "BlendedWriter needs Lightning: pip install 'napari-seamless[lightning]'"
    ) from error

_GEOMETRY = ("patch_size", "overlap", "grid", "halo", "region", "output_scale")
_INPUT = ("padding", "normalization", "percentiles", "mean_std")


class BlendedWriter(Callback):
    """Blend what a LightningModule predicts in ``trainer.test`` or ``trainer.predict``.

    Parameters
    ----------
    dataset : InferenceVolumeDataset
        The one that the trainer's DataLoader reads.
    config : InferenceConfig, optional
        How patches are blended and what is saved; by default that of the dataset. Its grid (patch
        size, overlap, grid, halo, region, output scale) must be the dataset's. What it does not
        say about the input (padding, normalization) is taken from there.
    output : path, optional
        As in `InferenceRun`: ".zarr", ".h5" or ".tif", with "{vol_id}" or "{name}" for several
        volumes. Written when the epoch ends, a partial result marked so.
    overwrite : bool
        Replace an output that exists.

    Attributes
    ----------
    outputs : tuple of dict
        After the epoch, for each volume its arrays (C, Z, Y, X) by name, as in `Prediction`; NaN
        where nothing was predicted. Empty in all processes but the first.

    Raises
    ------
    UnusableInputError
        If config, dataset and output do not fit together; while the trainer runs, if a batch or
        a prediction cannot be used.

    Notes
    -----
    The prediction is what the module's step returns: a tensor (B, C, Z, Y, X), or a tuple, list or
    dict with such tensors in it, of which several are heads. Other entries, and the batch's own
    tensors, are passed over. If the step returns no such tensor (a loss, nothing), the prediction
    is what the module's `forward` returned in it, so nothing is computed twice. What the step
    returns and logs is left alone.

    Device, batches, evaluation mode, test-time augmentation and planes of 2-D networks are the
    trainer's and the module's own matters: `device`, `batch_size`, `do_eval` and `planes` of the
    config change nothing.

    ``trainer.predict`` keeps every patch besides, unless told ``return_predictions=False``.

    With several processes (DDP), each holds only its own sums until the epoch ends; then they are
    added up chunk by chunk in the first one, which writes. Lightning's own sampler gives patch `i`
    to process ``i % world_size`` and repeats a few patches to even out the batches. Those, as all
    patches that reach a process they do not belong to, are held aside and count only if they
    arrived nowhere else: any other sampler gives the same result and takes more memory.

    An error ends the run. If there is only one process, what it had is kept as a partial result.

    Examples
    --------
    >>> dataset = InferenceVolumeDataset(["a.h5"], (8, 128, 128))           # doctest: +SKIP
    >>> writer = BlendedWriter(dataset, output="prediction.h5")             # doctest: +SKIP
    >>> trainer = Trainer(callbacks=[writer])                               # doctest: +SKIP
    >>> trainer.test(module, DataLoader(dataset, batch_size=4))             # doctest: +SKIP
    """

    def __init__(
        self,
        dataset: InferenceVolumeDataset,
        config: InferenceConfig | None = None,
        output: PathLike | None = None,
        *,
        overwrite: bool = False,
    ) -> None:
        if not isinstance(dataset, InferenceVolumeDataset):
            raise ConfigError(
                f"dataset is a {type(dataset).__name__}; give the InferenceVolumeDataset that the "
                "DataLoader reads"
            )
        self.dataset = dataset
        self.config = _fitted(dataset.config if config is None else config, dataset)
        self.outputs: tuple[dict[str, NDArray[Any]], ...] = ()
        self.paths = (
            [] if output is None else output_paths(output, [plan.name for plan in dataset.plans])
        )
        for path in self.paths:
            refuse_input_as_output(path, [*dataset.volumes, *dataset.labels])
        self._overwrite = overwrite
        self._check_places()
        self._share: Share | None = None
        self._hook: RemovableHandle | None = None
        self._forwarded: list[object] = []

    @property
    def arrays(self) -> tuple[NDArray[np.float32], ...]:
        """The prediction of each volume, float32 (C, Z, Y, X), by vol_id."""
        return tuple(outputs["main"] for outputs in self.outputs)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._begin(trainer, pl_module)

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self._begin(trainer, pl_module)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Blend a batch in."""
        self._take("test_step", outputs, batch, _loader(trainer.test_dataloaders, dataloader_idx))

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Blend a batch in."""
        loader = _loader(trainer.predict_dataloaders, dataloader_idx)
        self._take("predict_step", outputs, batch, loader)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what was blended."""
        self._end(trainer)

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what was blended."""
        self._end(trainer)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        """Keep what a single process has; several may no longer be there to add up theirs."""
        share = self._stop()
        if share is None or share.channels is None or share.world_size > 1:
            return
        try:
            is_wish = isinstance(exception, KeyboardInterrupt)
            self._keep(share, "partial" if is_wish else "failed")
        except SeamlessError as second:  # the first error is the one to mend
            exception.add_note(str(second))

    def _check_places(self) -> None:
        for path in self.paths:
            open_store(path, overwrite=self._overwrite)

    def _begin(self, trainer: Trainer, module: LightningModule) -> None:
        self._stop()
        self.outputs = ()
        if trainer.world_size > 1 and not dist.is_initialized():
            raise ConfigError(
                f"{type(trainer.strategy).__name__} runs {trainer.world_size} processes without "
                "torch.distributed, through which BlendedWriter adds up; use strategy='ddp'"
            )
        problem = None
        if trainer.is_global_zero:
            try:
                self._check_places()  # a file may have appeared since
            except OutputError as error:
                problem = error
        raise_everywhere(problem, trainer.world_size)
        provenance = {"versions": versions(), "network": type(module).__name__}
        if trainer.ckpt_path:
            provenance["checkpoint"] = Path(trainer.ckpt_path).name
        self._share = Share(
            self.dataset, self.config, trainer.global_rank, trainer.world_size, provenance
        )
        self._hook = module.register_forward_hook(self._notice)

    def _notice(self, module: nn.Module, args: Any, output: object) -> None:
        """Remember what `forward` returned in this step; of many calls, that there were two."""
        if patches_in(output) and len(self._forwarded) < 2:
            self._forwarded.append(output)

    def _take(self, step: str, returned: object, batch: Any, loader: Any) -> None:
        forwarded, self._forwarded = self._forwarded, []
        if self._share is None or not (loader is None or _reads(loader, self.dataset)):
            return
        with torch.inference_mode():
            indices = [self.dataset.index_of(pos) for pos in positions_of(batch)]
            heads = heads_of_step(step, returned, forwarded, batch, len(indices))
            self._check_room(self._share.add(indices, heads))

    def _check_room(self, is_first: bool) -> None:
        """Check what can be checked once the number of channels is known."""
        share = self._share
        if not is_first or share is None:
            return
        for vol_id in range(len(self.dataset.plans)):
            files = share.files(vol_id)
            if self.paths and share.rank == 0:
                check_room(self.paths[vol_id], sum(array.nbytes for array in files.values()))

    def _end(self, trainer: Trainer) -> None:
        share = self._stop()
        if share is None:
            return
        problem = None
        with torch.inference_mode():
            if share.world_size > 1:
                share.gather(trainer.strategy.root_device)
            if share.channels is None:
                raise ConfigError(
                    "no batch came from the dataset of this BlendedWriter; give the trainer a "
                    "DataLoader over the same InferenceVolumeDataset"
                )
            if share.rank == 0:
                try:
                    self._keep(share)
                except SeamlessError as error:
                    problem = error
            raise_everywhere(problem, share.world_size)

    def _stop(self) -> "Share | None":
        """Stop watching the module; return what was blended."""
        if self._hook is not None:
            self._hook.remove()
        share, self._share, self._hook, self._forwarded = self._share, None, None, []
        return share

    def _keep(self, share: "Share", status: str | None = None) -> None:
        """Keep the arrays, and write every volume that was begun; then raise what went wrong."""
        vol_ids = range(len(self.dataset.plans))
        self.outputs = tuple(
            {name: np.asarray(array) for name, array in share.outputs(vol_id).items()}
            for vol_id in vol_ids
        )
        problems = []
        for vol_id, path in zip(vol_ids, self.paths, strict=False):
            if not share.done(vol_id):
                continue
            files, facts = share.files(vol_id), share.metadata(vol_id, status)
            try:
                write_arrays(path, files, facts, overwrite=self._overwrite, labels=["labels"])
            except SeamlessError as error:
                error.add_note(rescue(vol_id, files, facts))
                problems.append(error)
        if problems:
            raise problems[0]


# ----------------------------------------------------------------------------------- settings


def _fitted(config: InferenceConfig, dataset: InferenceVolumeDataset) -> InferenceConfig:
    """Return the config with the dataset's settings of the input, which must not contradict it."""
    if not isinstance(config, InferenceConfig):
        raise ConfigError(f"config is a {type(config).__name__}; give an InferenceConfig(...)")
    given = dataset.config
    for name in _GEOMETRY:
        if _spelled_out(config, name) != _spelled_out(given, name):
            raise _differs(name, config, given)
    for name in _INPUT:
        is_asked_for = name in config.model_fields_set
        if is_asked_for and getattr(config, name) != getattr(given, name):
            if name == "normalization" and _is_same_input(config, dataset):
                continue
            raise _differs(name, config, given)
    _refuse_variants(config)
    return config.model_copy(update={name: getattr(given, name) for name in _INPUT})


def _differs(name: str, config: InferenceConfig, given: InferenceConfig) -> ConfigError:
    return ConfigError(
        f"{name} {_shown(config, name)} of the config is not that of the dataset, "
        f"{_shown(given, name)}: give the same to both"
    )


def _shown(config: InferenceConfig, name: str) -> str:
    value = getattr(config, name)
    return f"({', '.join(map(str, value))})" if name == "output_scale" else repr(value)


def _spelled_out(config: InferenceConfig, name: str) -> object:
    value = getattr(config, name)
    if name != "overlap":
        return value
    overlaps: tuple[Overlap, ...] = value if isinstance(value, tuple) else (value,) * 3
    return overlaps


def _is_same_input(config: InferenceConfig, dataset: InferenceVolumeDataset) -> bool:
    """Return whether normalizations of different names do the same to these volumes."""
    names = {config.normalization, dataset.config.normalization}
    return names == {"none", "dtype"} and all(plan.dtype.kind != "u" for plan in dataset.plans)


def _refuse_variants(config: InferenceConfig) -> None:
    for name, plain in {"tta": "none", "mc_samples": 1, "planes": "auto"}.items():
        value = getattr(config, name)
        if value != plain and (name != "planes" or value == "zyx"):
            raise ConfigError(
                f"{name} {value!r} is not done in Lightning's loops, where the module makes its "
                f"own variants: use {name}={plain!r}, or napari_seamless.predict"
            )


# ------------------------------------------------------------------------------------ batches


def _loader(loaders: Any, index: int) -> Any:
    """Return the DataLoader that a batch came from; None if there is only one."""
    several = list(loaders.values()) if isinstance(loaders, Mapping) else loaders
    if not isinstance(several, (list, tuple)) or len(several) < 2:
        return None
    return several[index]


def _reads(loader: Any, dataset: InferenceVolumeDataset) -> bool:
    found = getattr(loader, "dataset", None)
    while isinstance(found, Subset):
        found = found.dataset
    return found is dataset
