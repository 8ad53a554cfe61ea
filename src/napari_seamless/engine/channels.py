"""Settings that may differ between ranges of channels, written as text.

"sigmoid"                  the same for all channels
"0:3=sigmoid,3:4=tanh"     half-open ranges; channels that no range names get the default

channel     0   1   2   3   4
            [ sigmoid ] [tanh] default
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from napari_seamless.engine.errors import ConfigError

_RANGE = re.compile(r"\s*([0-9]{1,9})\s*:\s*([0-9]{1,9})\s*=\s*(\w+)\s*")

Range = tuple[int, int, str]
"""First channel, one past the last channel, and the word for them."""


@dataclass(frozen=True)
class PerChannel:
    """One word for each channel; `parse_ranges` makes it from text.

    Attributes
    ----------
    ranges : tuple of (int, int, str)
        Half-open ranges in rising order, none touching a channel of another.
    word : str
        For all channels outside of the ranges; with no ranges, for all.
    name : str
        What a message calls the setting.
    """

    ranges: tuple[Range, ...]
    word: str
    name: str

    def parts(self, channels: int) -> list[tuple[slice, str]]:
        """Return slices that cover channels 0 to `channels` in order, each with its word.

        Ranges stay apart even where neighbours have the same word: a softmax over 0:2 and one
        over 2:4 are not a softmax over 0:4.

        Raises
        ------
        ConfigError
            If a range reaches past the last channel.
        """
        parts, end = [], 0
        for start, stop, word in self.ranges:
            if stop > channels:
                raise ConfigError(
                    f"{self.name} '{start}:{stop}={word}' is not usable: there are {channels} "
                    f"channels; end every range at {channels} or before"
                )
            parts += [(slice(end, start), self.word), (slice(start, stop), word)]
            end = stop
        parts.append((slice(end, channels), self.word))
        return [(part, word) for part, word in parts if part.start < part.stop]


def parse_ranges(text: str, allowed: Sequence[str], default: str, name: str) -> PerChannel:
    """Return the setting that a text describes.

    Parameters
    ----------
    text : str
        One of the allowed words, or ranges such as "0:3=sigmoid,3:4=tanh", in any order.
    allowed : sequence of str
        The words to choose from.
    default : str
        The word for channels that no range names.
    name : str
        What a message calls the setting.

    Raises
    ------
    ConfigError
        If a word is unknown, or a range is malformed, empty, reversed or overlaps another.
    """
    if text in allowed:
        return PerChannel((), text, name)
    try:
        return PerChannel(_ranges(text, allowed), default, name)
    except ValueError as error:
        raise ConfigError(
            f"{name} {text!r} is not usable: {error}; choose {_listed(allowed)} for all channels, "
            f"or give ranges such as '0:3={allowed[0]},3:4={allowed[-1]}'"
        ) from None


def _ranges(text: str, allowed: Sequence[str]) -> tuple[Range, ...]:
    ranges = sorted(_range(part, allowed) for part in text.split(","))
    for (start, stop, _), (next_start, next_stop, _) in pairwise(ranges):
        if next_start < stop:
            raise ValueError(f"{start}:{stop} and {next_start}:{next_stop} overlap")
    return tuple(ranges)


def _range(part: str, allowed: Sequence[str]) -> Range:
    match = _RANGE.fullmatch(part)
    if match is None:
        raise ValueError(f"{part!r} is neither an allowed word nor a range")
    start, stop, word = int(match[1]), int(match[2]), match[3]
    if word not in allowed:
        raise ValueError(f"{word!r} is not an allowed word")
    if start >= stop:
        raise ValueError(f"{start}:{stop} holds no channel, a range ends after it starts")
    return start, stop, word


def _listed(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))
