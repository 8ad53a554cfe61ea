import pytest

from napari_seamless.engine import errors


@pytest.mark.parametrize(
    ("error", "families"),
    [
        (errors.ConfigError, {errors.UnusableInputError, ValueError}),
        (errors.SourceError, {errors.UnusableInputError, OSError, ValueError}),
        (errors.ModelError, {errors.UnusableInputError, OSError, ValueError}),
        (errors.ModelCallError, {errors.ModelError, RuntimeError}),
        (errors.OutputError, {errors.UnusableInputError, OSError, ValueError}),
        (errors.PredictionError, {errors.RunFailedError, RuntimeError}),
        (errors.WriteError, {errors.RunFailedError, OSError}),
    ],
)
def test_each_error_is_of_one_family_and_also_a_builtin(error, families):
    assert all(issubclass(error, family) for family in families)
    assert issubclass(error, errors.SeamlessError)
    assert not issubclass(error, errors.UnusableInputError) or not issubclass(
        error, errors.RunFailedError
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("too big"), "too big"),
        (RuntimeError("\n  size mismatch\n  at layer 3"), "size mismatch"),
        (MemoryError(), "MemoryError"),
        (KeyError("raw"), "'raw'"),
    ],
)
def test_one_line_of_any_error(error, line):
    assert errors.one_line(error) == line


def test_a_message_is_one_line_whatever_a_file_is_called():
    error = errors.ModelError("a\nb\x1b[31m.pt is no checkpoint")
    assert str(error) == r"a\nb\x1b[31m.pt is no checkpoint"
    assert errors.one_line(error) == str(error)
