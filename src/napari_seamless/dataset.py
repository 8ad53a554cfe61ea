"""Volumes as a torch dataset of patches, for loops that are not ours: Lightning's first of all."""

import os
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from napari_seamless.engine.box import Triple
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError, SourceError
from napari_seamless.engine.grid import Overlap
from napari_seamless.engine.normalization import normalizer_of
from napari_seamless.engine.plan import InferencePlan
from napari_seamless.engine.source import Source, read_patch, spatial_shape
from napari_seamless.engine.volume_plan import VolumePlan
from napari_seamless.io.sources import open_source


class InferenceVolumeDataset(Dataset[dict[str, Any]]):
    """Every patch of some volumes, volume after volume in raster order: the patches of `predict`.

    Parameters
    ----------
    volumes : path, array-like, or a list of them
        Volumes (Y, X), (Z, Y, X) or (C, Z, Y, X), as `predict` takes them. Files are opened when
        they are first read, in each process for itself. Arrays go to worker processes as they are:
        give the path of what is large, or of an h5py dataset, which cannot be sent.
    patch_size : tuple of int
        Voxels of a patch, (Z, Y, X).
    overlap : number or tuple of numbers
        What neighbours have in common, as in `InferenceConfig`.
    labels : path or array-like, or a list with one per volume, optional
        Truth (Z, Y, X) or (C, Z, Y, X), as large as the prediction of the whole volume.
    **settings
        Further settings of `InferenceConfig`. Those of the grid and the input count here: grid,
        halo, region, output_scale, padding, normalization, percentiles, mean_std. The others are
        what `BlendedWriter` does if it is given no config.

    Attributes
    ----------
    config : InferenceConfig
        The settings.
    volumes, labels : tuple
        As given; no labels are an empty tuple.
    plans : tuple of VolumePlan
        Where the patches of each volume are.

    Raises
    ------
    UnusableInputError
        If a volume, its labels or a setting cannot be used.

    Notes
    -----
    An item is a dict:

    - ``"image"``, float32 Tensor of shape (C, Z, Y, X): the patch and its halo, normalised and
      padded.
    - ``"pos"``, a tuple ``(vol_id, z, y, x)`` of int: which volume, and where in it, in voxels, the
      patch without its halo starts; a start is negative where the volume is smaller than the
      patch. A DataLoader makes four tensors (B,) of it.
    - ``"label"``, Tensor of shape (C, Z, Y, X), if there are labels: those of the patch without its
      halo, at the output's resolution, padded as the image is. In their own dtype, but int64 for
      unsigned integers of more than 8 bits, with which torch does not compute.

    The normalisations `minmax`, `percentile` and `zscore` read every volume once, here and now, so
    that no worker has to.

    Examples
    --------
    >>> import numpy as np
    >>> volume = np.zeros((8, 64, 64), np.uint8)
    >>> dataset = InferenceVolumeDataset([volume], patch_size=(4, 32, 32), overlap=0.5)
    >>> len(dataset)
    27
    >>> dataset[26]["image"].shape, dataset[26]["pos"]
    (torch.Size([1, 4, 32, 32]), (0, 4, 32, 32))
    """

    def __init__(
        self,
        volumes: Any,
        patch_size: Triple,
        overlap: Overlap | tuple[Overlap, Overlap, Overlap] = 0.5,
        labels: Any = None,
        **settings: Any,
    ) -> None:
        self.config = InferenceConfig(patch_size=patch_size, overlap=overlap, **settings)
        self.volumes = _listed(volumes)
        self.labels = () if labels is None else _listed(labels)
        self._images = _lazies(volumes, "volume")
        self._truths = [] if labels is None else _lazies(labels, "labels")
        try:
            self._look()
        finally:
            self.close()  # what stays open would be shared with workers that are forked

    def _look(self) -> None:
        """Find out from the volumes what is fixed from now on."""
        config = self.config
        sources = [image.source for image in self._images]
        # Where the network runs is not our matter, so the device need not be on this machine.
        anywhere = config.model_copy(update={"device": "cpu"})
        self.plans: tuple[VolumePlan, ...] = InferencePlan.resolve(anywhere, sources).volumes
        self._firsts = list(accumulate((len(plan.cores) for plan in self.plans), initial=0))
        if self._truths:
            _check_labels([truth.source for truth in self._truths], self.plans)
        self._normalizers = [
            normalizer_of(source, config.normalization, config.percentiles, config.mean_std)
            for source in sources
        ]

    def __len__(self) -> int:
        return self._firsts[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return one patch; see the notes of the class."""
        vol_id, patch = self.place_of(index)
        plan, padding = self.plans[vol_id], self.config.padding
        image = read_patch(
            self._images[vol_id].source, plan.input_box(patch), padding, self._normalizers[vol_id]
        )
        core = plan.cores[patch]
        item: dict[str, Any] = {
            "image": torch.from_numpy(np.ascontiguousarray(image)),
            "pos": (vol_id, *core.start),
        }
        if self._truths:
            label = self._truths[vol_id].source
            voxels = read_patch(label, core.scaled(plan.scale), padding)
            item["label"] = _label_tensor(voxels, label.name)
        return item

    def index_of(self, pos: Sequence[int]) -> int:
        """Return the index of the item whose ``pos`` this is.

        Parameters
        ----------
        pos : sequence of int
            ``(vol_id, z, y, x)``, in voxels.

        Returns
        -------
        int

        Raises
        ------
        ConfigError
            If no patch starts there.
        """
        vol_id, *start = (int(value) for value in pos)
        if len(start) == 3 and 0 <= vol_id < len(self.plans):
            grid = self.plans[vol_id].cores
            cell = [
                int(np.searchsorted(starts, low))
                for starts, low in zip(grid.starts, start, strict=True)
            ]
            if all(
                i < len(starts) and starts[i] == low
                for i, starts, low in zip(cell, grid.starts, start, strict=True)
            ):
                return self._firsts[vol_id] + int(np.ravel_multi_index(cell, grid.counts))
        raise ConfigError(
            f"no patch of this dataset is at pos {tuple(pos)} (vol_id, z, y, x): "
            "batches must come from the same dataset, with 'pos' as it gave it"
        )

    def place_of(self, index: int) -> tuple[int, int]:
        """Return of which volume an item is a patch.

        Parameters
        ----------
        index : int
            Of the item; a negative one counts from the end.

        Returns
        -------
        vol_id, patch : int
            Which volume, and the patch's raster index in that volume's grid.

        Raises
        ------
        IndexError
            If there is no such item.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"patch {index} is not in a dataset of {len(self)} patches")
        index %= len(self)
        vol_id = bisect_right(self._firsts, index) - 1
        return vol_id, index - self._firsts[vol_id]

    def close(self) -> None:
        """Close the files that this process has open; reading opens them again."""
        for each in [*self._images, *self._truths]:
            each.close()


class _Lazy:
    """A volume that is opened when it is first read, by each process for itself.

    An open file can be neither sent to another process nor read by two that share its handle.
    """

    def __init__(self, volume: Any, name: str) -> None:
        self._volume = volume
        self._name = None if isinstance(volume, (str, os.PathLike)) else name  # its path
        self._opened: tuple[int, Source] | None = None

    @property
    def source(self) -> Source:
        """The open volume."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = os.getpid(), open_source(self._volume, self._name)
        return self._opened[1]

    def close(self) -> None:
        """Close what this process opened; a source that was handed in stays the caller's."""
        opened, self._opened = self._opened, None
        if opened and opened[0] == os.getpid() and opened[1] is not self._volume:
            opened[1].close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


def _lazies(volumes: Any, kind: str) -> list[_Lazy]:
    """Call volumes in messages what a run calls them."""
    if not isinstance(volumes, (list, tuple)):
        return [_Lazy(volumes, f"the {kind}")]
    return [_Lazy(each, f"{kind} {vol_id}") for vol_id, each in enumerate(volumes)]


def _listed(volumes: Any) -> tuple[Any, ...]:
    return tuple(volumes) if isinstance(volumes, (list, tuple)) else (volumes,)


def _check_labels(labels: Sequence[Source], plans: Sequence[VolumePlan]) -> None:
    if len(labels) != len(plans):
        raise ConfigError(f"labels are {len(labels)} for {len(plans)} volumes; give one each")
    for label, plan in zip(labels, plans, strict=True):
        if spatial_shape(label) != plan.whole:
            raise SourceError(
                f"{label.name} of {plan.name} have shape {spatial_shape(label)}; they must have "
                f"that of the whole prediction, {plan.whole} (Z, Y, X)"
            )


def _label_tensor(voxels: NDArray[Any], name: str) -> torch.Tensor:
    """Return labels as a tensor with memory of its own, of a type that torch computes with."""
    dtype = voxels.dtype.newbyteorder("=")
    if dtype.kind == "u" and dtype.itemsize > 1:
        if voxels.max() > np.iinfo(np.int64).max:
            raise SourceError(
                f"{name} hold {voxels.max()}, which torch's int64 cannot; number them anew"
            )
        dtype = np.dtype(np.int64)
    elif dtype.kind == "f" and dtype.itemsize > 8:
        dtype = np.dtype(np.float64)
    return torch.from_numpy(voxels.astype(dtype, order="C"))
