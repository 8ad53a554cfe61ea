"""The arguments of the command line: what may be typed, and what it means."""

import argparse
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, get_args, get_origin

from napari_seamless import __version__
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import SourceError, one_line
from napari_seamless.engine.refusals import json_object

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

PROGRAM = "napari-seamless"
UNUSABLE = 2
"""Exit code of wrong arguments."""

Subparsers: TypeAlias = "argparse._SubParsersAction[_Parser]"
"""What `add_subparsers` makes: argparse has no public name for it."""

Command = Callable[[argparse.Namespace], int]


def parse(
    arguments: Sequence[str] | None,
    *,
    predict: Command,
    inspect: Command,
    evaluate: Command,
    demo: Command,
) -> argparse.Namespace:
    """Return what was typed; `command` is the one to call.

    Ends the program with exit code 2 and a line on standard error if it is not understood.
    """
    parser, commands = parsers()
    for name, act in {
        "predict": predict,
        "inspect": inspect,
        "evaluate": evaluate,
        "demo": demo,
    }.items():
        commands[name].set_defaults(command=act)
    return parser.parse_args(arguments)


def parsers() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser of the whole command line, and that of each command by its name."""
    parser = _Parser(PROGRAM, description="Blended sliding-window inference on image volumes.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    return parser, {
        "predict": _add_predict(commands),
        "inspect": _add_inspect(commands),
        "evaluate": _add_evaluate(commands),
        "demo": _add_demo(commands),
    }


def settings_of(options: argparse.Namespace) -> dict[str, Any]:
    """Settings of `--config`, overruled by those given one by one.

    The file may hold what a run says of itself, with the settings in it.
    """
    given = {
        name: getattr(options, name)
        for name in InferenceConfig.model_fields
        if hasattr(options, name)
    }
    if options.config is None:
        return given
    settings = json_object(_text_of(options.config, "--config"), "--config")
    inside = settings.get("config")
    return {**(inside if isinstance(inside, dict) else settings), **given}


def checkpoint_of(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is said of the checkpoint, by the names of `load_model`."""
    return {
        "architecture": options.architecture,
        "arguments": _json_object(options.arguments, "--arguments"),
        "trust": options.trust,
        "weights": options.weights,
    }


def _json_object(text: str | None, option: str) -> dict[str, Any] | None:
    """Return a JSON object given as text, or in the file that the text names."""
    if text is None:
        return None
    if text.lstrip()[:1] not in ("{", "["):
        text = _text_of(text, option)
    return json_object(text, option)


def _text_of(path: str, option: str) -> str:
    try:
        return Path(os.path.expanduser(path)).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SourceError(f"{option} {path!r} cannot be read: {one_line(error)}") from None


class _Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):
            message += " (one that begins with - like this: --mean-std=-1,2)"
        self.exit(UNUSABLE, f"{PROGRAM}: error: {message}; see {self.prog} --help\n")


def _add_predict(commands: Subparsers) -> argparse.ArgumentParser:
    predict = commands.add_parser("predict", help="run a network over volumes", allow_abbrev=False)
    predict.add_argument(
        "input",
        metavar="INPUT",
        nargs="+",
        help="volume: FILE.h5::dataset, .zarr, .n5, .tif, .npy, a folder of planes, or a URL "
        "s3://, gs://, http(s)://; (Z, Y, X), (C, Z, Y, X) or (T, C, Z, Y, X)",
    )
    _add_checkpoint(predict, "--checkpoint", required=True)
    _add_output(predict)
    predict.add_argument(
        "--mask",
        nargs="+",
        help="volume as large as INPUT, for each: patches that reach only 0 in it do not run",
    )
    _add_resources(predict)
    _add_tuning(predict)
    predict.add_argument(
        "--labels", nargs="+", help="truth (Z, Y, X) of each volume to score against, like INPUT"
    )
    predict.add_argument("--config", help="JSON file with settings; options given here overrule it")
    predict.add_argument("--json", action="store_true", help="print the summary as JSON")
    settings = predict.add_argument_group(
        "settings",
        "Numbers for several axes or channels are separated by commas, 8,128,128, or are JSON, "
        "[[1, 0, 0], null].",
    )
    for name, field in InferenceConfig.model_fields.items():
        _add_setting(settings, name, field)
    return predict


def _add_output(predict: argparse.ArgumentParser) -> None:
    predict.add_argument(
        "--output",
        required=True,
        help="OUT.zarr (OME-Zarr), OUT.h5 (dataset main) or OUT.tif; for several volumes with "
        "{name} or {vol_id} in it, or a folder",
    )
    what_is_there = predict.add_mutually_exclusive_group()
    what_is_there.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run left at OUT, if there is one: cancelled, failed or killed, or "
        "without patches that could not be read",
    )
    what_is_there.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")


def _add_resources(predict: argparse.ArgumentParser) -> None:
    where = predict.add_mutually_exclusive_group()
    where.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="run on N processes of this machine (extra cluster)",
    )
    where.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="run on a Dask cluster, tcp://HOST:8786 (extra cluster); paths must be the same there",
    )
    predict.add_argument(
        "--memory",
        type=_bytes,
        metavar="SIZE",
        help="memory for the run's data, 2GB or 500MB (default: a quarter of what is free); what "
        "does not fit is on the disk",
    )


def _add_tuning(predict: argparse.ArgumentParser) -> None:
    predict.add_argument(
        "--tune",
        action="store_true",
        help="try for some seconds which batch size, memory layout, graph, threads and, on a GPU, "
        "precision are fastest, and take these; found once, they are remembered",
    )
    predict.add_argument(
        "--tune-patches",
        choices=("same", "larger", "halo"),
        default="same",
        help="what --tune may do about voxels that are computed several times: nothing; larger "
        "patches that overlap by as many voxels; or no overlap but the network's receptive field "
        "as halo, as if all of the volume went through the network at once (default: same)",
    )
    predict.add_argument(
        "--tune-tolerance",
        type=float,
        metavar="SHARE",
        default=1e-4,
        help="how much predictions of the same patches may differ then, as a share of the largest "
        "value (default: 1e-4)",
    )


def _add_setting(parser: Any, name: str, field: "FieldInfo") -> None:
    """Add the option of a setting; without it, the options have no attribute of its name."""
    kind: Any = field.annotation
    given: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help_on(field)}
    if kind is bool:
        given["action"] = argparse.BooleanOptionalAction
    elif get_origin(kind) is Literal:
        given["choices"] = get_args(kind)
    else:
        is_text = kind in (str, str | None)
        given |= {"type": str if is_text else _value, "metavar": "VALUE"}
    parser.add_argument(_option(name), **given)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _help_on(field: "FieldInfo") -> str:
    """Return what a setting is and its default, in words of the command line."""

    def quoted(match: re.Match[str]) -> str:
        name, is_off, _ = match[1].partition("=False")
        if name not in InferenceConfig.model_fields:
            return match[1]
        return _option(f"no_{name}" if is_off else name)

    text = re.sub("`(.*?)`", quoted, " ".join((field.description or "").split()))
    text = text.replace("None", "null")  # as JSON calls it
    default = field.get_default(call_default_factory=True)
    if isinstance(default, bool):
        text += f" (default: {'on' if default else 'off'})"
    elif not field.is_required() and default not in (None, (), {}):
        shown = default if isinstance(default, tuple) else (default,)
        text += f" (default: {','.join(map(str, shown))})"
    return text.replace("%", "%%")


def _add_inspect(commands: Subparsers) -> argparse.ArgumentParser:
    inspect = commands.add_parser("inspect", help="say what is in a checkpoint, and what fits")
    _add_checkpoint(inspect, "checkpoint", metavar="CHECKPOINT")
    inspect.add_argument("--json", action="store_true", help="print the report as JSON")
    return inspect


def _add_evaluate(commands: Subparsers) -> argparse.ArgumentParser:
    evaluate = commands.add_parser("evaluate", help="score a prediction against labels")
    evaluate.add_argument("prediction", metavar="PREDICTION", help="a path like FILE.h5::main")
    evaluate.add_argument("labels", metavar="LABELS", help="a path like FILE.h5::labels")
    evaluate.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        help="foreground is above it; in the units of the prediction before it was saved",
    )
    evaluate.add_argument(
        "--kind",
        choices=("probability", "segmentation"),
        help="what the prediction is; by default integers of more than two values are instances",
    )
    evaluate.add_argument("--json", action="store_true", help="print the scores as JSON")
    return evaluate


def _add_demo(commands: Subparsers) -> argparse.ArgumentParser:
    demo = commands.add_parser(
        "demo", help="the demo volume and checkpoint, in napari or on a virtual screen"
    )
    demo.add_argument("--folder", default="seamless-demo", help="where files go without a screen")
    return demo


def _add_checkpoint(parser: argparse.ArgumentParser, name: str, **kwargs: Any) -> None:
    parser.add_argument(
        name,
        help="TorchScript, torch.export .pt2, a state dict (.pt, .pth, .ckpt, .safetensors), ONNX, "
        "a MONAI bundle, a bioimage.io package or an nnU-Net folder",
        **kwargs,
    )
    parser.add_argument(
        "--architecture",
        metavar="NAME",
        help="network of a state dict: MODULE:CLASS, or a network of MONAI by its name; without it "
        "the file is asked, then some are guessed",
    )
    parser.add_argument("--arguments", metavar="JSON", help="its arguments: JSON, or a JSON file")
    parser.add_argument(
        "--weights", metavar="NAME", help="which of several sets of weights; see inspect"
    )
    parser.add_argument(
        "--trust",
        action="store_true",
        help="run code that is in the checkpoint, which can do anything that you can",
    )


def _bytes(text: str) -> int:
    """Return the bytes that "2GB", "500 MB" or a plain number means; a K is 1024."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)I?B?\s*", text.upper())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no amount of memory; give 2GB or 500MB")
    return int(float(match[1]) * 1024 ** " KMGT".index(match[2] or " "))


def _value(text: str) -> Any:
    """Return what a setting's text stands for: JSON, or values separated by commas.

    What it cannot be, the settings say themselves.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # a number may also be too long
        is_json = text.lstrip()[:1] in ("[", "{")
        return text if is_json or "," not in text else [_value(part) for part in text.split(",")]
