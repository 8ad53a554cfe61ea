"""What a setting takes: the kinds of values that the fields of the settings are made of."""

import operator
from fractions import Fraction
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PlainSerializer, WithJsonSchema

from napari_seamless.engine.grid import Overlap

FINEST_SCALE = 64
"""Largest denominator of an output scale."""


def _whole(value: Any) -> int:
    """Take any integer, numpy's too, but neither 8.0 nor True."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ValueError("must be an integer")
    return operator.index(value)


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")  # True would otherwise pass as 1
    if isinstance(value, (int, float)) and value < 0:
        raise ValueError("must not be negative")
    return operator.index(value) if hasattr(value, "__index__") else value


def _overlaps(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_number(each) for each in value)
    if value == 1:  # in a triple 1 is a voxel; alone it would be read as the whole patch
        raise ValueError("must be below 1")
    return _number(value)


def _fraction(value: Any) -> Fraction:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    try:
        exact = Fraction(value)
    except ZeroDivisionError:
        raise ValueError("must not be divided by 0") from None
    near = exact.limit_denominator(FINEST_SCALE)
    if near <= 0 or abs(near - exact) > 1e-6 * near:
        raise ValueError("must be a positive fraction")
    return near


def _per_axis(value: Any) -> Any:
    """Take one scale for all axes."""
    return value if isinstance(value, (list, tuple)) else (value,) * 3


def _spans(value: Any) -> Any:
    """Take "0:8,0:512,0:512" for ((0, 8), (0, 512), (0, 512))."""
    parts = value.split(",") if isinstance(value, str) else value
    return tuple(_span(part) for part in parts) if isinstance(parts, (list, tuple)) else parts


def _time_points(value: Any) -> Any:
    """Take "0:10:2" and 3 for the indices that they stand for."""
    if isinstance(value, str):
        first, *rest = (int(part) for part in value.split(":"))
        return tuple(range(first, *rest)) if rest else (first,)
    return (value,) if hasattr(value, "__index__") else value


def _distinct(value: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if value is not None and (not value or len(set(value)) < len(value)):
        raise ValueError("must be at least one, each once")
    return value


def _span(span: Any) -> Any:
    return tuple(int(end) for end in span.split(":")) if isinstance(span, str) else span


LARGEST = 1 << 20
"""Voxels of a patch along one axis, and patches of a batch, at most: no memory holds as many."""

Voxels = Annotated[int, Field(ge=1, le=LARGEST), BeforeValidator(_whole)]
Margin = Annotated[int, Field(ge=0), BeforeValidator(_whole)]
Offset = tuple[
    Annotated[int, BeforeValidator(_whole)],
    Annotated[int, BeforeValidator(_whole)],
    Annotated[int, BeforeValidator(_whole)],
]
Channel = Annotated[int, Field(ge=0), BeforeValidator(_whole)]
Vector = tuple[Channel | None, Channel | None, Channel | None]
Span = tuple[Margin, Voxels]
Region = Annotated[tuple[Span, Span, Span] | None, BeforeValidator(_spans)]
TimePoints = Annotated[
    tuple[Margin, ...] | None, BeforeValidator(_time_points), AfterValidator(_distinct)
]
Overlaps = Annotated[Overlap | tuple[Overlap, Overlap, Overlap], BeforeValidator(_overlaps)]
AxisScale = Annotated[
    Fraction,
    BeforeValidator(_fraction),
    PlainSerializer(lambda value: str(value) if value.denominator > 1 else value.numerator),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}]}),
]
Scales = Annotated[tuple[AxisScale, AxisScale, AxisScale], BeforeValidator(_per_axis)]
