"""Amounts as people read them."""


def readable_bytes(nbytes: float) -> str:
    """Return a number of bytes in the unit that suits it."""
    for unit in ("bytes", "KiB", "MiB", "GiB", "TiB"):
        if nbytes < 1024:
            return f"{nbytes:.4g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.4g} PiB"


def readable_time(seconds: float) -> str:
    """Return a time in the unit that suits it."""
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"


def readable_times(count: float) -> str:
    """Return "once", or how many times, to three digits."""
    said = f"{count:.3g}"
    return "once" if said == "1" else f"{said} times"
