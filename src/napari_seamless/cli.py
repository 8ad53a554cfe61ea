"""The command line. It drains the same run as the widget and turns errors into exit codes.

0 done; 1 failed while running; 2 wrong arguments or unusable input; 130 cancelled.
"""

import argparse
import json
import math
import os
import re
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, get_origin

from napari_seamless import __version__
from napari_seamless.engine.config import InferenceConfig, json_object
from napari_seamless.engine.errors import (
    SeamlessError,
    SourceError,
    UnusableInputError,
    WriteError,
    one_line,
)
from napari_seamless.metrics import METRIC_NAMES

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

    from napari_seamless.engine.run import Run
    from napari_seamless.engine.source import Source
    from napari_seamless.inference import InferenceRun

DONE, FAILED, UNUSABLE, CANCELLED = 0, 1, 2, 130
PROGRAM = "napari-seamless"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        What follows the program's name; `sys.argv` if left out.

    Returns
    -------
    int
        The exit code.
    """
    options = _parser().parse_args(arguments)
    try:
        return int(options.command(options))
    except (SeamlessError, MemoryError) as error:
        _complain("; ".join([one_line(error), *getattr(error, "__notes__", [])]))
        return _exit_code(error)
    except KeyboardInterrupt:
        return CANCELLED


def _predict(options: argparse.Namespace) -> int:
    settings = _settings(options)
    if "patch_size" in settings:
        InferenceConfig(**settings)  # what is wrong in itself is said before torch is loaded
    checkpoint = _checkpoint(options)
    from napari_seamless.inference import InferenceRun
    from napari_seamless.models import load_model

    model = load_model(options.checkpoint, **checkpoint)
    config = model.config(**settings)
    _say_taken(model.report.settings, settings)
    with InferenceRun(
        options.input, model, config, options.output, overwrite=options.overwrite
    ) as run:
        truth = run.open_labels(options.labels) if options.labels else None
        return _finish(run, truth, options.json)


def _finish(run: "InferenceRun", truth: "list[Source] | None", as_json: bool) -> int:
    """Drain a run, say what came of it, and return the exit code."""
    from napari_seamless.inference import drain, failure_lines

    broken: SeamlessError | None = None
    began = time.perf_counter()
    try:
        with _cancelled_by_ctrl_c(run):
            drain(run)
    except SeamlessError as error:
        broken = error
    facts = _summary(run, time.perf_counter() - began)
    lines = failure_lines(run)
    try:
        if truth is not None and run.done and broken is None:
            facts |= run.scores(truth)
    finally:  # also if the labels cannot be compared after all
        if broken is None:
            _report({**facts, "failures": lines}, as_json)
        for line in lines:
            _complain(line)
    if broken is not None:
        return _exit_code(broken)
    return {"complete": DONE, "failed": FAILED}.get(run.status, CANCELLED)


def _summary(run: "InferenceRun", seconds: float) -> dict[str, Any]:
    voxels = sum(math.prod(volume.grid.shape) for volume in run.plan.volumes)
    return {
        "status": run.status,
        "patches": run.done,
        "redundancy": round(run.plan.redundancy, 2),
        "of": run.total,
        "output": [str(run.paths[vol_id]) for vol_id in sorted(run.written)],
        "seconds": round(seconds, 2),
        "voxels_per_second": round(voxels * run.done / run.total / seconds),
    }


def _report(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(facts)
        return
    _say(
        f"{facts['status']}: {facts['patches']} of {facts['of']} patches in {facts['seconds']} s "
        f"({facts['voxels_per_second']:,} voxels/s)"
    )
    _print_scores(facts)
    _say(f"written to {', '.join(facts['output'])}" if facts["output"] else "nothing written")


def _print_json(facts: dict[str, Any]) -> None:
    """Print JSON that any reader takes, which has no NaN or infinity: those become null."""
    plain = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in facts.items()
    }
    _say(json.dumps(plain, allow_nan=False))


def _print_scores(facts: dict[str, Any]) -> None:
    """Print those of the facts that are metrics, one per line."""
    for name, label in METRIC_NAMES.items():
        if name in facts:
            _say(f"{label:22} {facts[name]:.4f}")
    if "voxels" in facts:
        _say(f"{'voxels compared':22} {facts['voxels']:,}")


def _say(text: str) -> None:
    """Print in the characters that the terminal has; that nobody reads it is no error."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is buffered
        if not isinstance(error, BrokenPipeError):
            raise WriteError(f"the summary cannot be printed: {one_line(error)}") from error


def _evaluate(options: argparse.Namespace) -> int:
    from napari_seamless.evaluation import evaluate_files

    scores = evaluate_files(options.prediction, options.labels, options.threshold, options.kind)
    if options.json:
        _print_json(scores)
    else:
        is_segmentation = "dice" not in scores
        _say(f"compared as {'a segmentation' if is_segmentation else 'a probability or mask'}")
        _print_scores(scores)
    return DONE


def _inspect(options: argparse.Namespace) -> int:
    checkpoint = _checkpoint(options)
    from napari_seamless.models import inspect_checkpoint

    report = inspect_checkpoint(options.checkpoint, **checkpoint)
    _say(json.dumps(report.to_dict()) if options.json else str(report))
    return DONE


def _demo(options: argparse.Namespace) -> int:
    from napari_seamless.demo.show import show_demo

    return show_demo(Path(options.folder))


def _settings(options: argparse.Namespace) -> dict[str, Any]:
    """Settings of `--config`, overruled by those given one by one."""
    given = {
        name: getattr(options, name)
        for name in InferenceConfig.model_fields
        if hasattr(options, name)
    }
    if options.config is None:
        return given
    return {**json_object(_text_of(options.config, "--config"), "--config"), **given}


def _checkpoint(options: argparse.Namespace) -> dict[str, Any]:
    """Return what is said of the checkpoint, by the names of `load_model`."""
    return {
        "architecture": options.architecture,
        "arguments": _json_object(options.arguments, "--arguments"),
        "trust": options.trust,
        "weights": options.weights,
    }


def _say_taken(known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Say on standard error which settings come from the checkpoint."""
    taken = [f"{name} {value}" for name, value in known.items() if name not in given]
    if taken:
        print(f"taken from the checkpoint: {', '.join(taken)}", file=sys.stderr)


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


@contextmanager
def _cancelled_by_ctrl_c(run: "Run") -> Iterator[None]:
    """Let the first Ctrl-C end the run after its batch, and a second one end the program."""

    def cancel(number: int, frame: object) -> None:
        run.cancel()
        signal.signal(signal.SIGINT, before)
        print("\ncancelling after this batch; Ctrl-C again to stop at once", file=sys.stderr)

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _exit_code(error: BaseException) -> int:
    return UNUSABLE if isinstance(error, UnusableInputError) else FAILED


def _complain(line: str) -> None:
    print(f"{PROGRAM}: error: {line}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str) -> NoReturn:
        if message.endswith("expected one argument"):
            message += " (one that begins with - like this: --mean-std=-1,2)"
        self.exit(UNUSABLE, f"{PROGRAM}: error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(PROGRAM, description="Blended sliding-window inference on image volumes.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_predict(commands)
    _add_inspect(commands)
    _add_evaluate(commands)
    _add_demo(commands)
    return parser


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser("predict", help="run a network over volumes", allow_abbrev=False)
    predict.set_defaults(command=_predict)
    predict.add_argument(
        "input",
        metavar="INPUT",
        nargs="+",
        help="volume: FILE.h5::dataset, .tif or .npy; (Z, Y, X) or (C, Z, Y, X)",
    )
    _add_checkpoint(predict, "--checkpoint", required=True)
    predict.add_argument(
        "--output",
        required=True,
        help="OUT.h5 (dataset main) or OUT.tif; for several volumes with {name} or {vol_id} in "
        "it, or a folder",
    )
    predict.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
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


def _add_inspect(commands: Any) -> None:
    inspect = commands.add_parser("inspect", help="say what is in a checkpoint, and what fits")
    inspect.set_defaults(command=_inspect)
    _add_checkpoint(inspect, "checkpoint", metavar="CHECKPOINT")
    inspect.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_evaluate(commands: Any) -> None:
    evaluate = commands.add_parser("evaluate", help="score a prediction against labels")
    evaluate.set_defaults(command=_evaluate)
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


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo", help="the demo volume and checkpoint, in napari or on a virtual screen"
    )
    demo.set_defaults(command=_demo)
    demo.add_argument("--folder", default="seamless-demo", help="where files go without a screen")


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


def _value(text: str) -> Any:
    """Return what a setting's text stands for: JSON, or values separated by commas.

    What it cannot be, the settings say themselves.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # a number may also be too long
        is_json = text.lstrip()[:1] in ("[", "{")
        return text if is_json or "," not in text else [_value(part) for part in text.split(",")]
