"""What plans.json and dataset.json of an nnU-Net v2 folder say: one configuration, checked.

No torch in here. Everything in the plans counts the network's axes; see `nnunet_axes`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from napari_seamless.engine.errors import ModelError, one_line
from napari_seamless.models.archive import open_files
from napari_seamless.models.nnunet.axes import Axes

PLANS, DATASET = "plans.json", "dataset.json"

OLD_NETWORKS = {
    "PlainConvUNet": ("dynamic_network_architectures.architectures.unet", "n_conv_per_stage"),
    "ResidualEncoderUNet": (
        "dynamic_network_architectures.architectures.unet",
        "n_blocks_per_stage",
    ),
}
"""Networks that plans before nnU-Net 2.4 name, and what each calls the depth of its stages."""

Size = Annotated[int, Field(gt=0)]


class _Part(BaseModel):
    """A part of a JSON file; what is not asked for is not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore")


PartT = TypeVar("PartT", bound=_Part)


class Architecture(_Part):
    """How the plans say that the network is built."""

    network_class_name: str
    arch_kwargs: dict[str, Any]
    requires_import: tuple[str, ...] = Field((), alias="_kw_requires_import")
    """Which of the arguments name a class."""


class Configuration(_Part):
    """One of the ways to train that the plans describe, such as 3d_fullres."""

    patch_size: Annotated[tuple[Size, ...], Field(min_length=2, max_length=3)]
    spacing: tuple[float, ...] = ()
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...] = ()
    previous_stage: str | None = None
    architecture: Architecture | None = None


class OldArchitecture(_Part):
    """What plans before nnU-Net 2.4 say of the network, beside everything else."""

    UNet_class_name: str
    UNet_base_num_features: Size
    unet_max_num_features: Size
    n_conv_per_stage_encoder: tuple[Size, ...]
    n_conv_per_stage_decoder: tuple[Size, ...]
    conv_kernel_sizes: list[list[Size]]
    pool_op_kernel_sizes: list[list[Size]]

    def translated(self, where: Path, dims: int) -> Architecture:
        """Return the same in the words of newer plans, with what nnU-Net then took for granted."""
        if self.UNet_class_name not in OLD_NETWORKS:
            raise ModelError(
                f"{where} names the network {self.UNet_class_name!r}; known are "
                f"{', '.join(OLD_NETWORKS)}: give architecture and arguments"
            )
        module, depth = OLD_NETWORKS[self.UNet_class_name]
        stages = len(self.n_conv_per_stage_encoder)
        features = [self.UNet_base_num_features << stage for stage in range(stages)]
        arguments = {
            "n_stages": stages,
            "features_per_stage": [min(each, self.unet_max_num_features) for each in features],
            "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
            "kernel_sizes": self.conv_kernel_sizes,
            "strides": self.pool_op_kernel_sizes,
            depth: list(self.n_conv_per_stage_encoder),
            "n_conv_per_stage_decoder": list(self.n_conv_per_stage_decoder),
            "conv_bias": True,
            "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        }
        return Architecture(
            network_class_name=f"{module}.{self.UNet_class_name}",
            arch_kwargs=arguments,
            _kw_requires_import=("conv_op", "norm_op", "dropout_op", "nonlin"),
        )


class Plans(_Part):
    """plans.json."""

    configurations: dict[str, dict[str, Any]]
    dataset_name: str = ""
    plans_name: str = ""
    image_reader_writer: str = ""
    transpose_forward: Annotated[tuple[int, ...], Field(min_length=3, max_length=3)] = (0, 1, 2)
    intensities: dict[str, dict[str, Any]] = Field(
        default_factory=dict,
        validation_alias=AliasChoices(
            "foreground_intensity_properties_per_channel",
            "foreground_intensity_properties_by_modality",
        ),
    )
    """Of the training images, by channel: "0", "1"."""


class Dataset(_Part):
    """dataset.json."""

    channel_names: dict[str, str] = Field(
        validation_alias=AliasChoices("modality", "channel_names")
    )
    labels: dict[str, int | list[int]]
    """A label is a number; a region, of labels that overlap others, is a list of them."""
    regions_class_order: tuple[int, ...] | None = None

    @property
    def has_regions(self) -> bool:
        """Whether channels are regions, which may overlap, and not labels."""
        return any(isinstance(value, list) and len(value) > 1 for value in self.labels.values())

    @property
    def channels(self) -> int:
        """Channels that the network gives: nnU-Net's `num_segmentation_heads`.

        A channel for every region but the background, or for every label with it; none for what
        is ignored.
        """
        named = [
            set(value) if isinstance(value, list) else {value}
            for name, value in self.labels.items()
            if name != "ignore"
        ]
        if self.has_regions:
            return sum(values != {0} for values in named)
        return len(set().union(*named))


@dataclass(frozen=True)
class Plan:
    """One configuration of a folder.

    Attributes
    ----------
    where : Path
        plans.json, for messages.
    name : str
        Of the configuration.
    plans, dataset : Plans, Dataset
        The files that it is from.
    configuration : Configuration
        What is checked of it.
    values : mapping
        All of it, with what it inherits.
    axes : Axes
        What the network's axes are.
    """

    where: Path
    name: str
    plans: Plans
    dataset: Dataset
    configuration: Configuration
    values: Mapping[str, Any]
    axes: Axes

    @property
    def architecture(self) -> Architecture:
        """How the network is built.

        Raises
        ------
        ModelError
            If the plans do not say it, or not so that it is understood.
        """
        if self.configuration.architecture is not None:
            return self.configuration.architecture
        inside = f"configurations.{self.name}."
        old = _checked(OldArchitecture, self.values, self.where, inside)
        return old.translated(self.where, len(self.axes.of))


def read_files(folder: Path) -> tuple[Plans, Dataset]:
    """Return what both files of a folder say.

    Raises
    ------
    ModelError
        If one of them is missing, no JSON, or lacks what is needed.
    """
    with open_files(folder, (PLANS,)) as files:
        if DATASET not in files:
            raise ModelError(
                f"{folder} has no {DATASET}, which says what channels and labels there are; copy "
                "it from where nnU-Net trained"
            )
        return (
            _checked(Plans, _json(files.text(PLANS), folder / PLANS), folder / PLANS),
            _checked(Dataset, _json(files.text(DATASET), folder / DATASET), folder / DATASET),
        )


def plan_of(folder: Path, name: str, plans: Plans, dataset: Dataset) -> Plan:
    """Return one configuration.

    Raises
    ------
    ModelError
        If there is no such one, it is not whole, or it needs the result of another.
    """
    where = folder / PLANS
    values = _inherited(where, plans, name, ())
    found = _checked(Configuration, values, where, f"configurations.{name}.")
    dims = len(found.patch_size)
    if found.previous_stage is not None:
        raise ModelError(
            f"{folder} holds {name}, the second stage of a cascade: it takes the segmentation by "
            f"{found.previous_stage} as further channels, which is not supported; give the folder "
            f"of {found.previous_stage}, or of another configuration"
        )
    if sorted(plans.transpose_forward) != [0, 1, 2]:
        raise ModelError(
            f"{where} has transpose_forward {list(plans.transpose_forward)}; it must be an order "
            "of 0, 1, 2"
        )
    axes = Axes(plans.transpose_forward[3 - dims :])
    return Plan(where, name, plans, dataset, found, values, axes)


def _inherited(where: Path, plans: Plans, name: str, before: tuple[str, ...]) -> dict[str, Any]:
    """Return a configuration with what it inherits from others."""
    if name not in plans.configurations or name in before:
        wrong = "inherits from itself" if name in before else "is not there"
        raise ModelError(
            f"{where}: the configuration {name!r} {wrong}; it has "
            f"{', '.join(plans.configurations) or 'none'}"
        )
    values = plans.configurations[name]
    parent = values.get("inherits_from")
    if parent is None:
        return values
    return {**_inherited(where, plans, str(parent), (*before, name)), **values}


def _json(text: str, where: Path) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # also numbers too long, brackets too deep
        raise ModelError(
            f"{where} is not JSON ({one_line(error)}); copy or download it again"
        ) from None


def _checked(kind: type[PartT], values: Any, where: Path, inside: str = "") -> PartT:
    """Return the part of a file that `values` are, or say what is wrong with them."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        name = inside + ".".join(map(str, problem["loc"]))
        raise ModelError(
            f"{where} is no file of nnU-Net v2 as it should be: {name or 'all of it'}: "
            f"{problem['msg'].splitlines()[0]}; copy or download it again"
        ) from None


def intensities_of(plan: Plan, channel: int) -> Mapping[str, float]:
    """Return what the plans know of a channel's values: mean, std and percentiles.

    Raises
    ------
    ModelError
        If they do not know it.
    """
    known = _checked(
        _Intensities,
        plan.plans.intensities.get(str(channel), {}),
        plan.where,
        f"foreground_intensity_properties_per_channel.{channel}.",
    )
    return known.model_dump()


class _Intensities(_Part):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float
