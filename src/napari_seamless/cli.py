"""The command line. It drains the same run as the widget and turns errors into exit codes.

0 done; 1 failed while running; 2 wrong arguments or unusable input; 130 cancelled.
"""

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import numpy as np

from napari_seamless import __version__
from napari_seamless.engine.config import (
    Activation,
    Blending,
    InferenceConfig,
    Normalization,
    Padding,
    TestTimeAugmentation,
    json_object,
)
from napari_seamless.engine.errors import (
    RunFailedError,
    SeamlessError,
    SourceError,
    UnusableInputError,
    one_line,
)

if TYPE_CHECKING:
    from napari_seamless.engine.run import Run

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
    except UnusableInputError as error:
        return _complain(error, UNUSABLE)
    except RunFailedError as error:
        return _complain(error, FAILED)
    except MemoryError as error:
        return _complain(error, FAILED)
    except KeyboardInterrupt:
        return CANCELLED


def _predict(options: argparse.Namespace) -> int:
    config = _config(options)
    network_arguments = _json_object(options.arguments, "--arguments")
    from napari_seamless.inference import InferenceRun  # after the cheap checks: loads torch
    from napari_seamless.metrics import dice
    from napari_seamless.models import load_model

    model = load_model(options.checkpoint, options.architecture, network_arguments)
    began = time.perf_counter()
    with InferenceRun(
        options.input, model, config, options.output, overwrite=options.overwrite
    ) as run:
        truth = run.read_labels(options.labels) if options.labels else None
        with _cancelled_by_ctrl_c(run):
            _drain(run, options.output)
        facts = _summary(run, options.output, time.perf_counter() - began)
        if truth is not None and run.done:
            facts["dice"] = dice(run.live[0], truth)
    _report(facts, options.json)
    return DONE if run.status == "complete" else CANCELLED


def _drain(run: "Run", output: str) -> None:
    """Drain a run; an error also says what is kept."""
    from napari_seamless.inference import drain

    try:
        drain(run)
    except SeamlessError as error:
        if run.is_written:
            error.add_note(f"{output} keeps {run.done} of {run.total} patches")
        raise


def _summary(run: "Run", output: str, seconds: float) -> dict[str, Any]:
    voxels = sum(int(np.prod(volume.grid.shape)) for volume in run.plan.volumes)
    return {
        "status": run.status,
        "patches": run.done,
        "redundancy": round(run.plan.redundancy, 2),
        "of": run.total,
        "output": output if run.done else None,
        "seconds": round(seconds, 2),
        "voxels_per_second": round(voxels * run.done / run.total / seconds),
    }


def _report(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(facts))
        return
    print(
        f"{facts['status']}: {facts['patches']} of {facts['of']} patches in {facts['seconds']} s "
        f"({facts['voxels_per_second']:,} voxels/s)"
    )
    if "dice" in facts:
        print(f"Dice {facts['dice']:.4f}")
    print(f"written to {facts['output']}" if facts["output"] else "nothing written")


def _inspect(options: argparse.Namespace) -> int:
    network_arguments = _json_object(options.arguments, "--arguments")
    from napari_seamless.models import inspect_checkpoint

    report = inspect_checkpoint(options.checkpoint, options.architecture, network_arguments)
    print(json.dumps(report.to_dict()) if options.json else report)
    return DONE


def _demo(options: argparse.Namespace) -> int:
    from napari_seamless.demo.show import show_demo

    return show_demo(Path(options.folder))


def _config(options: argparse.Namespace) -> InferenceConfig:
    """Settings of `--config`, overruled by those given one by one."""
    given = {
        name: getattr(options, name)
        for name in InferenceConfig.model_fields
        if getattr(options, name, None) is not None
    }
    if options.config is None:
        return InferenceConfig(**given)
    base = json_object(_text_of(options.config, "--config"), "--config")
    return InferenceConfig(**{**base, **given})


def _json_object(text: str | None, option: str) -> dict[str, Any] | None:
    """Return a JSON object given as text, or in the file that the text names."""
    if text is None:
        return None
    if text.lstrip()[:1] not in ("{", "["):
        text = _text_of(text, option)
    return json_object(text, option)


def _text_of(path: str, option: str) -> str:
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
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


def _complain(error: BaseException, code: int) -> int:
    notes = getattr(error, "__notes__", [])
    print(f"{PROGRAM}: error: {'; '.join([one_line(error), *notes])}", file=sys.stderr)
    return code


class _Parser(argparse.ArgumentParser):
    """argparse, with errors of one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(UNUSABLE, f"{PROGRAM}: error: {message}; see {self.prog} --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(PROGRAM, description="Blended sliding-window inference on image volumes.")
    parser.add_argument("--version", action="version", version=f"{PROGRAM} {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_predict(commands)
    _add_inspect(commands)
    _add_demo(commands)
    return parser


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser("predict", help="run a network over a volume")
    predict.set_defaults(command=_predict)
    predict.add_argument(
        "input", metavar="INPUT", help="volume: FILE.h5::dataset, .tif or .npy; (C, Z, Y, X)"
    )
    _add_checkpoint(predict, "--checkpoint", required=True)
    predict.add_argument("--output", required=True, help="OUT.h5 (dataset main) or OUT.tif")
    predict.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    predict.add_argument("--labels", help="truth (Z, Y, X) to score against, a path like INPUT")
    predict.add_argument("--config", help="JSON file with settings; options given here overrule it")
    predict.add_argument("--json", action="store_true", help="print the summary as JSON")
    settings = predict.add_argument_group("settings", "defaults: see InferenceConfig")
    settings.add_argument("--patch-size", type=_voxels, metavar="Z,Y,X", help="voxels per patch")
    settings.add_argument("--overlap", type=float, help="share of the patch, in [0, 1)")
    settings.add_argument("--batch-size", type=int, help="patches per call of the network")
    settings.add_argument("--device", help="auto, cpu, cuda, cuda:N or mps")
    for name, choices in _CHOICES.items():
        settings.add_argument(f"--{name}", choices=get_args(choices))


_CHOICES = {
    "blending": Blending,
    "activation": Activation,
    "normalization": Normalization,
    "padding": Padding,
    "tta": TestTimeAugmentation,
}


def _add_inspect(commands: Any) -> None:
    inspect = commands.add_parser("inspect", help="say what is in a checkpoint, and what fits")
    inspect.set_defaults(command=_inspect)
    _add_checkpoint(inspect, "checkpoint", metavar="CHECKPOINT")
    inspect.add_argument("--json", action="store_true", help="print the report as JSON")


def _add_demo(commands: Any) -> None:
    demo = commands.add_parser(
        "demo", help="the demo volume and checkpoint, in napari or on a virtual screen"
    )
    demo.set_defaults(command=_demo)
    demo.add_argument("--folder", default="seamless-demo", help="where files go without a screen")


def _add_checkpoint(parser: argparse.ArgumentParser, name: str, **kwargs: Any) -> None:
    parser.add_argument(name, help="TorchScript, or a state dict with --architecture", **kwargs)
    parser.add_argument("--architecture", metavar="MODULE:CLASS", help="network of a state dict")
    parser.add_argument("--arguments", metavar="JSON", help="its arguments: JSON, or a JSON file")


def _voxels(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no size; give three integers like 8,128,128 (Z,Y,X)"
        ) from None
