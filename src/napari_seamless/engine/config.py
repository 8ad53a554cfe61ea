"""The settings of a run: frozen, validated, JSON in and out."""

from collections.abc import Mapping
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from napari_seamless.engine.agreement import check_agreement
from napari_seamless.engine.box import Box
from napari_seamless.engine.channels import PerChannel, parse_ranges
from napari_seamless.engine.errors import ConfigError
from napari_seamless.engine.fields import (
    Margin,
    Offset,
    Overlaps,
    Region,
    Scales,
    TimePoints,
    Vector,
    Voxels,
)
from napari_seamless.engine.grid import Spacing
from napari_seamless.engine.refusals import json_object, refusal
from napari_seamless.engine.tta import Directions, Transform, transforms_of
from napari_seamless.engine.variants import COMBINATIONS
from napari_seamless.engine.windows import WINDOWS

Blending = Literal[
    "gaussian",
    "bump",
    "constant",
    "hann",
    "monai_gaussian",
    "nnunet_gaussian",
    "wu_bump",
    "distance_transform",
]
Normalization = Literal["none", "dtype", "minmax", "percentile", "zscore", "fixed"]
Padding = Literal["reflect", "edge", "constant"]
OnError = Literal["stop", "continue"]
Planes = Literal["auto", "none", "z", "y", "x", "zyx"]
Labelling = Literal["none", "argmax", "threshold"]
OutputDtype = Literal["float32", "float16", "uint8", "uint16"]
Precision = Literal["float32", "float16", "bfloat16"]
Graph = Literal["eager", "frozen", "compiled"]

ACTIVATIONS = ("none", "sigmoid", "softmax", "tanh")
FLOAT32_MAX = 3.4e38
TTA_CHOICES = ("none", "flip:x", "flip:yx", "flip:zyx", "flip:yx+turn:yx", "flip:zyx+turn:yx")
"""What a form offers; `transforms_of` knows more."""


class InferenceConfig(BaseModel):
    """Everything that decides the numbers of a run, apart from the volume and the network.

    Its fields are documented one by one. It is frozen: `changed` returns another one.

    Raises
    ------
    ConfigError
        If a value is out of range, or values do not fit each other; one line names the value and
        what is allowed.

    Examples
    --------
    >>> config = InferenceConfig(patch_size=(8, 128, 128), overlap=(0, 32, 32))
    >>> config.changed({"batch_size": 4}).batch_size
    4
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    patch_size: tuple[Voxels, Voxels, Voxels]
    """Voxels of the model input, (Z, Y, X); a 2-D image has Z = 1."""
    overlap: Overlaps = 0.5
    """What neighbours have in common, for all axes or per axis (Z, Y, X): a float in [0, 1) is
    a share of the patch, an integer from 1 on is voxels (from 2 on where it stands alone).
    """
    grid: Spacing = "snap"
    """How patches are spaced: constant stride with the last patch shifted back inside, or
    evenly.
    """
    halo: tuple[Margin, Margin, Margin] = (0, 0, 0)
    """Context in voxels (Z, Y, X) on each side of a patch: fed to the network, cut off its
    output, never blended. The network's input is `patch_size + 2 * halo`.
    """
    step: tuple[Voxels, Voxels, Voxels] = (1, 1, 1)
    """Patches start at multiples of so many voxels (Z, Y, X); the last one may reach outside then.
    What a network with pooling makes of a voxel depends on it, unless it is what the pooling takes
    together.
    """
    region: Region = None
    """Part of the volume to predict, (Z, Y, X), also as text "z0:z1,y0:y1,x0:x1". It equals the
    crop of the full result: the same patches run, those that touch it.
    """
    time_points: TimePoints = None
    """Which time points of a series (T, C, Z, Y, X), also as text "0:10" or "0:10:2"; all by
    default.
    """
    skip_constant: bool = False
    """Do not run patches whose input is the same value everywhere, in each channel."""
    fill_value: Annotated[float, Field(ge=-FLOAT32_MAX, le=FLOAT32_MAX)] = 0.0
    """What voxels become that only skipped patches reach: patches that are constant, or outside a
    mask.
    """
    on_error: OnError = "stop"
    """What to do about a patch whose input cannot be read: stop the run, or continue it without
    that patch. Every voxel that the patch would reach is then NaN, in integers `fill_value`.
    """
    padding: Padding = "reflect"
    """What fills a patch and its halo outside the volume (constant is 0)."""
    blending: Blending = "gaussian"
    """Window that weights each patch before it is added: gaussian, bump, constant, hann,
    monai_gaussian, nnunet_gaussian, wu_bump or distance_transform.
    """
    blending_arguments: Mapping[str, Any] = Field(default_factory=dict)
    """Arguments of the window, for example `{"sigma": 0.3}`."""
    planes: Planes = "auto"
    """For 2-D networks: the axis along which planes are taken one by one, or "zyx" for all
    three ways, averaged. "auto" takes z for a network of 2-D convolutions and is "none" (3-D)
    for others.
    """
    output_scale: Scales = (Fraction(1), Fraction(1), Fraction(1))
    """Output voxels per input voxel, for all axes or per axis (Z, Y, X): 2, 0.5, "2/3"."""
    head: str | None = None
    """Which head is shown and written as the prediction where a network returns a tuple, list
    (named "0", "1", ...) or dict of them; the first by default. All heads are blended.
    """
    activation: str = "none"
    """none, sigmoid, softmax (over channels) or tanh; or per half-open range of channels,
    "0:3=sigmoid,3:4=tanh", others staying as they are. With several heads, ranges count the
    channels of all of them.
    """
    blend_logits: bool = False
    """Apply the activation after blending, on the finished voxel, and not to each patch before."""
    normalization: Normalization = "dtype"
    """What is done to the input, with statistics of each channel of the whole volume. "none";
    "dtype": unsigned integers divided by their type's largest value, floats as they are;
    "minmax"; "percentile" (to 0 and 1, not clipped); "zscore"; "fixed" (see `mean_std`).
    """
    percentiles: tuple[float, float] = (1.0, 99.0)
    """Which ones become 0 and 1, for "percentile"."""
    mean_std: tuple[float, float] | None = None
    """Subtracted, and divided by, for "fixed"."""
    do_eval: bool = True
    """Put the network in evaluation mode. If false its dropout stays active; batch-norm
    statistics are never changed.
    """
    mc_samples: Voxels = 1
    """Passes per patch with dropout active: their mean is the prediction, their standard
    deviation the spread. More than 1 needs `do_eval=False`.
    """
    tta: str = "none"
    """Test-time augmentation: "none", "flip" or "flip:yx" (flips along axes, up to 8 variants),
    "turn" or "turn:yx" (90-degree turns in a plane), "flip:zyx+turn:yx" (up to 16).
    """
    tta_mode: str = "mean"
    """How flips and turns become one: mean, min, max or median, or per channel range as
    `activation`. Samples and planes are averaged before.
    """
    spread: bool = False
    """Give the standard deviation over variants as a second output: of what is blended, so of
    logits with `blend_logits`.
    """
    disagreement: bool = False
    """Give how much patches that overlap disagree as one more output: the standard deviation of
    what each of them says of a voxel, weighted as they are blended; of logits with `blend_logits`.
    """
    offsets: tuple[Offset | None, ...] = ()
    """For affinities: channel c at voxel v relates v and `v + offsets[c]`; None for channels
    without. As many as channels.
    """
    vectors: tuple[Vector, ...] = ()
    """For vector fields: the channels of the components along Z, Y and X; None where there is
    no such component.
    """
    output_dtype: OutputDtype = "float32"
    """What a finished voxel is saved as, rounded and clipped once."""
    intensity_scale: Annotated[float, Field(gt=0)] | None = None
    """Multiplied with a finished voxel when it is saved; by default 1 for floats, and the
    type's largest value for integers, which 0 to 1 then fill.
    """
    labelling: Labelling = "none"
    """Labels as one more output: the largest channel, or 1 where a channel exceeds `threshold`."""
    threshold: float = 0.5
    """See `labelling`; in the units of the prediction."""
    batch_size: Voxels = 1
    """Patches per call of the network."""
    device: Annotated[str, Field(pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$")] = "auto"
    """"auto" (a GPU if there is one), "cpu", "cuda", "cuda:N" or "mps"."""
    precision: Precision = "float32"
    """What the network computes in on a GPU: float16 and bfloat16 are used where torch holds that
    to be safe (autocast). What is summed is float32 at least.
    """
    tf32: bool = False
    """Let a GPU round what it multiplies to 10 bits (TensorFloat-32), which is faster."""
    channels_last: bool = False
    """Lay out a voxel's channels side by side, which some machines compute faster with."""
    graph: Graph = "eager"
    """How the network is run: "eager", as it is; "frozen", recorded at its first batch with fixed
    weights (TorchScript); "compiled" by torch.compile, which needs a C++ compiler.
    """
    threads: Voxels | None = None
    """Threads that compute the network on a CPU; None for what torch takes by itself."""

    def __init__(self, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise ConfigError(refusal(error, settings, type(self).model_fields)) from None

    def __hash__(self) -> int:  # pydantic's cannot hash the arguments of the window
        return hash(self.to_json())

    @model_validator(mode="after")
    def _fit_each_other(self) -> "InferenceConfig":
        check_agreement(self)
        return self

    @property
    def activations(self) -> PerChannel:
        """The activation of each channel."""
        return parse_ranges(self.activation, ACTIVATIONS, "none", "activation")

    @property
    def tta_modes(self) -> PerChannel:
        """How the variants of each channel become one."""
        return parse_ranges(self.tta_mode, COMBINATIONS, "mean", "tta_mode")

    @property
    def transforms(self) -> tuple[Transform, ...]:
        """Variants of test-time augmentation, the untransformed patch first."""
        return transforms_of(self.tta)

    @property
    def directions(self) -> Directions:
        """Which channels carry directions."""
        return Directions(self.offsets, self.vectors)

    @property
    def scale_text(self) -> str:
        """The output scale as it is written."""
        return f"({', '.join(map(str, self.output_scale))})"

    @property
    def has_spread(self) -> bool:
        """Whether the spread is a second output."""
        return self.spread or self.mc_samples > 1

    @property
    def box(self) -> Box | None:
        """The region as a box, in voxels of the source; None for the whole volume."""
        if self.region is None:
            return None
        (z, z_stop), (y, y_stop), (x, x_stop) = self.region
        return Box((z, y, x), (z_stop, y_stop, x_stop))

    @classmethod
    def from_json(cls, text: str) -> "InferenceConfig":
        """Return the config that `to_json` wrote.

        Parameters
        ----------
        text : str
            A JSON object of settings by name; those left out keep their defaults.

        Returns
        -------
        InferenceConfig

        Raises
        ------
        ConfigError
            If the text is not a JSON object, or a setting is unknown or out of range.
        """
        return cls(**json_object(text, "the config"))

    def changed(self, settings: Mapping[str, Any]) -> "InferenceConfig":
        """Return the config with other values of some settings, checked anew.

        Parameters
        ----------
        settings : mapping
            Values by the names of the settings.

        Returns
        -------
        InferenceConfig

        Raises
        ------
        ConfigError
            If a setting is unknown or out of range.
        """
        return InferenceConfig(**{**self.model_dump(), **settings})

    def to_json(self) -> str:
        """Return the config as a JSON object.

        Returns
        -------
        str
            Every setting, also those that are at their defaults, indented.
        """
        return self.model_dump_json(indent=2)


if set(WINDOWS) != set(Blending.__args__):  # type: ignore[attr-defined]
    raise AssertionError("config.Blending and windows.WINDOWS must name the same windows")
