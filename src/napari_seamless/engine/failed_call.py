"""What is said of a call of the network that failed."""

from napari_seamless.engine.batched import is_out_of_memory
from napari_seamless.engine.errors import ModelCallError, PredictionError, SeamlessError, one_line

_LACKING_MEMORY = "use a smaller patch_size, or another device such as the CPU"
_NOT_FITTING = (
    "check the patch size, the number of channels it was trained with, and planes (z if it is 2-D)"
)


def failed_call(error: BaseException, shape: tuple[int, ...], is_first: bool) -> SeamlessError:
    """Return an error that says in one line why a call of the network failed, and what could help.

    Parameters
    ----------
    error : BaseException
        What the network raised.
    shape : tuple of int
        Of the batch, (B, C, Z, Y, X).
    is_first : bool
        Whether no call before it has worked.
    """
    kind = ModelCallError if is_first else PredictionError
    batch = f"on a batch (B, C, Z, Y, X) of {shape}"
    if isinstance(error, SystemExit):
        return kind(
            f"the network ended the program ({_exit(error)}) {batch}; let its code raise an error "
            "where it calls exit"
        )
    lacks_memory = is_out_of_memory(error)
    remedy = _LACKING_MEMORY if lacks_memory else _NOT_FITTING
    failure = kind(f"the network failed {batch}: {reason_of(error)}; {remedy}")
    failure.is_out_of_memory = lacks_memory
    return failure


def reason_of(error: BaseException) -> str:
    """Return what an error says; TorchScript puts the cause on its last line."""
    lines = str(error).strip().splitlines()
    is_scripted = len(lines) > 1 and "TorchScript interpreter" in lines[0]
    return (lines[-1] if is_scripted else one_line(error)).rstrip(".")


def _exit(error: SystemExit) -> str:
    """Return how a program was ended, with the code or text that was given for it."""
    return ": ".join(["SystemExit", *str(error).splitlines()[:1]])
