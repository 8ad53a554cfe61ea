"""By which steps the input of a network may grow."""

from napari_seamless.models.reporting.trials import Input, Trials

_STEPS = (32, 64, 48, 36, 54, 40, 56)
"""Steps that are tried if smaller powers of 2 do not work; they stand for their divisors, too."""
_PRIMES = (2, 3, 5, 7)


def step_along(trials: Trials, given: Input, axis: int, others: list[int | None]) -> int | None:
    """Return by which smallest step an input may grow along an axis.

    Parameters
    ----------
    trials : Trials
        Calls the network.
    given : Input
        It works.
    axis : int
        Of the size.
    others : list of int or None
        Steps along other axes, tried first, since it is likely one of them.

    Returns
    -------
    int or None
        0 if it may not grow, None if all that is left is too large to be tried.

    Raises
    ------
    OutOfTimeError
        If time was up before.
    """
    half = 2 ** max(3, given.size[axis].bit_length() - 2)
    likely = dict.fromkeys(filter(None, (*reversed(others), 1, half, *_STEPS)))
    # A network that makes one plane of several does not grow along that axis.
    for may_stay in (False, True):
        growth = _Growth(trials, given, axis, may_stay)
        for step in likely:
            if growth.works(step):
                return growth.smallest(step)
    return None if growth.is_unsure else 0


class _Growth:
    """How the output grows with the input along one axis.

    Parameters
    ----------
    trials : Trials
        Calls the network.
    given : Input
        It works.
    axis : int
        Of the size.
    may_stay : bool
        Whether an output that does not grow will do.

    Attributes
    ----------
    is_unsure : bool
        Whether a step was not tried because the input would have been too large.
    """

    def __init__(self, trials: Trials, given: Input, axis: int, may_stay: bool) -> None:
        self._trials, self._given, self._axis = trials, given, axis
        self._may_stay = may_stay
        self._refused: list[int] = []
        self.is_unsure = False

    def works(self, step: int) -> bool:
        """Return whether one and two steps more work, and the output grows twice as much by two.

        Less would not do: a network may halve 17 voxels to 8 or 9, and that of 18 is 9, too.
        """
        if any(refused % step == 0 for refused in self._refused):
            return False
        longer = [self._given.longer(self._axis, times * step) for times in (1, 2)]
        if not longer[1].is_small:
            self.is_unsure = True
            return False
        works = self._is_even(*longer)
        if not works:
            self._refused.append(step)
        return works

    def smallest(self, step: int) -> int:
        """Return the smallest divisor of a step that works, which does."""
        for prime in _PRIMES:
            while step % prime == 0 and self.works(step // prime):
                step //= prime
        return step

    def _length(self, given: Input) -> int | None:
        size = self._trials.size(given)
        return None if size is None else size[self._axis]

    def _is_even(self, longer: Input, longest: Input) -> bool:
        first, second = self._length(self._given), self._length(longer)
        if first is None or second is None:
            return False
        grown = second - first
        if grown < 0 or (grown == 0 and not self._may_stay):
            return False
        return self._length(longest) == second + grown
