"""Settings that are typed as text: regions, time points, scales, names."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any

from magicgui.widgets import LineEdit
from pydantic import TypeAdapter, ValidationError

from napari_seamless.engine.fields import Region, Scales, TimePoints


class TextSetting(LineEdit):
    """A line of text that stands for a setting of `InferenceConfig`.

    Its `value` is what the setting holds; text that is none stays as it is, and is refused by the
    settings.

    Parameters
    ----------
    name : str
        The setting.
    hint : str
        Shown while it is empty: what the run then does.
    read, write : callable
        Text that is not empty -> value, and back.
    empty : object
        What no text stands for.
    **options : Any
        Of the widget.
    """

    def __init__(
        self,
        name: str,
        hint: str,
        read: Callable[[str], Any] = str,
        write: Callable[[Any], str] = str,
        empty: Any = None,
        **options: Any,
    ) -> None:
        self._read, self._write, self._empty = read, write, empty
        super().__init__(name=name, **options)
        self.native.setPlaceholderText(hint)

    @property
    def text(self) -> str:
        """What is typed."""
        return str(super().get_value()).strip()

    def get_value(self) -> Any:
        """Return what the setting takes."""
        return self._read(self.text) if self.text else self._empty

    def set_value(self, value: Any) -> None:
        """Show a value as text."""
        is_empty = value is None or value == self._empty
        text = "" if is_empty else value if isinstance(value, str) else self._write(value)
        super().set_value(text)


def region_field(**options: Any) -> TextSetting:
    """Return a field for part of a volume: "0:8,0:512,0:512"."""
    return TextSetting(read=partial(_read, Region), write=_spans_text, **options)


def times_field(**options: Any) -> TextSetting:
    """Return a field for time points: "3", "0:10:2" or "0,4,7"."""
    return TextSetting(read=_times_of, write=_times_text, **options)


def scale_field(**options: Any) -> TextSetting:
    """Return a field for a scale for all axes, "1/2", or per axis (Z, Y, X), "1,2,2"."""
    return TextSetting(read=_scales_of, write=_scales_text, empty=(1, 1, 1), **options)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _read(kind: Any, text: Any) -> Any:
    try:
        return _adapter(kind).validate_python(text)
    except (ValidationError, ZeroDivisionError):
        return text


def _spans_text(spans: Sequence[Sequence[int]]) -> str:
    return ",".join(f"{start}:{stop}" for start, stop in spans)


def _times_of(text: str) -> Any:
    parts = text.split(",")
    is_list = len(parts) > 1 and all(part.strip().isdecimal() for part in parts)
    return _read(TimePoints, list(map(int, parts)) if is_list else text)


def _times_text(times: Sequence[int]) -> str:
    """Return time points as they are typed: as a range where they are evenly spaced."""
    step = times[1] - times[0] if len(times) > 2 else 0
    if step > 0 and list(times) == list(range(times[0], times[-1] + 1, step)):
        return f"{times[0]}:{times[-1] + 1}" + (f":{step}" if step > 1 else "")
    return ",".join(map(str, times))


def _scales_of(text: str) -> Any:
    parts = [part.strip() for part in text.split(",")]
    return _read(Scales, parts if len(parts) > 1 else text)


def _scales_text(scales: Any) -> str:
    parts = [str(part) for part in scales] if isinstance(scales, (list, tuple)) else [str(scales)]
    return parts[0] if len(set(parts)) == 1 else ",".join(parts)
