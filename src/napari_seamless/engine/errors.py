"""Every error the project raises on purpose; each is also the builtin a caller would expect.

    SeamlessError
    ├── UnusableInputError     what was asked for cannot work             (exit code 2)
    │   ├── ConfigError        a setting; a ValueError
    │   ├── SourceError        the volume to read; an OSError and a ValueError
    │   ├── ModelError         the checkpoint or network; an OSError and a ValueError
    │   │   ├── UntrustedError it would run code from the checkpoint
    │   │   └── ModelCallError its first batch failed; a RuntimeError too
    │   └── OutputError        where to write; an OSError and a ValueError
    ├── EndedError             the run ended before there was anything to see
    └── RunFailedError         it broke while running                     (exit code 1)
        ├── PredictionError    the network, or memory; a RuntimeError
        └── WriteError         writing the result; an OSError

A file that is not there and a file with something unusable in it are one kind of mistake to a
caller, so those errors are both builtins, as `io.UnsupportedOperation` is.

A message is one line: the value, what is allowed, the remedy.
"""


class SeamlessError(Exception):
    """Base of all errors raised by napari-seamless.

    Its message is one line, whatever characters are in the names of files that it tells of.

    Attributes
    ----------
    is_out_of_memory : bool
        Whether less at once could work.
    """

    is_out_of_memory = False

    def __str__(self) -> str:
        return printable(super().__str__())


class UnusableInputError(SeamlessError):
    """What was asked for cannot work; nothing was lost."""


class ConfigError(UnusableInputError, ValueError):
    """A setting is out of its range, unknown, or does not fit the others."""


class SourceError(UnusableInputError, OSError, ValueError):
    """A volume cannot be read, or holds values that no prediction can come from."""


class ModelError(UnusableInputError, OSError, ValueError):
    """A checkpoint cannot be opened, or its network does not fit the input."""


class UntrustedError(ModelError):
    """A checkpoint can be opened only by running code that it brings, which needs trust."""


class ModelCallError(ModelError, RuntimeError):
    """The network failed on its very first batch: it cannot be used like this."""


class OutputError(UnusableInputError, OSError, ValueError):
    """The result cannot be written where it was asked for."""


class EndedError(SeamlessError):
    """A run was asked for what only its first batch tells, and was cancelled before that."""


class RunFailedError(SeamlessError):
    """A run that had begun broke off; what it had is kept as a partial result."""


class PredictionError(RunFailedError, RuntimeError):
    """The network raised an error, or returned values that are not finite."""


class WriteError(RunFailedError, OSError):
    """Writing the result broke off."""


def printable(text: str) -> str:
    """Return text with line breaks and control characters written out."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def one_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the name of its type if it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
