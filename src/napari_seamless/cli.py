"""The command line. It drains the same run as the widget and turns errors into exit codes.

0 done; 1 failed while running; 2 wrong arguments or unusable input; 130 cancelled.
"""

import argparse
import json
import math
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, get_args, get_origin

from napari_seamless import __version__
from napari_seamless.engine.config import InferenceConfig, json_object
from napari_seamless.engine.errors import (
    RunFailedError,
    SourceError,
    UnusableInputError,
    one_line,
)
from napari_seamless.metrics import METRIC_NAMES

if TYPE_CHECKING:
    from napari_seamless.engine.run import Run
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
    from napari_seamless.models import load_model

    model = load_model(options.checkpoint, options.architecture, network_arguments)
    began = time.perf_counter()
    with InferenceRun(
        options.input, model, config, options.output, overwrite=options.overwrite
    ) as run:
        truth = run.open_labels(options.labels) if options.labels else None
        with _cancelled_by_ctrl_c(run):
            _drain(run)
        facts = _summary(run, time.perf_counter() - began)
        if truth is not None and run.done:
            facts |= run.scores(truth)
    _report(facts, options.json)
    for vol_id, error in run.failures.items():
        error.add_note(f"this was volume {vol_id}, {run.plan.volumes[vol_id].name}")
        _complain(error, FAILED)
    return {"complete": DONE, "failed": FAILED}.get(run.status, CANCELLED)


def _drain(run: "InferenceRun") -> None:
    """Drain a run; an error also says what is kept."""
    from napari_seamless.inference import drain

    try:
        drain(run)
    finally:
        for vol_id, error in run.failures.items():
            if vol_id in run.written:
                done, total = run.progress(vol_id)
                error.add_note(f"{run.paths[vol_id]} keeps {done} of {total} patches")


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
        print(json.dumps(facts))
        return
    print(
        f"{facts['status']}: {facts['patches']} of {facts['of']} patches in {facts['seconds']} s "
        f"({facts['voxels_per_second']:,} voxels/s)"
    )
    _print_scores(facts)
    print(f"written to {', '.join(facts['output'])}" if facts["output"] else "nothing written")


def _print_scores(facts: dict[str, Any]) -> None:
    """Print those of the facts that are metrics, one per line."""
    for name, label in METRIC_NAMES.items():
        if name in facts:
            print(f"{label:22} {facts[name]:.4f}")


def _evaluate(options: argparse.Namespace) -> int:
    from napari_seamless.inference import evaluate_files

    scores = evaluate_files(options.prediction, options.labels, options.threshold, options.kind)
    if options.json:
        print(json.dumps(scores))
    else:
        _print_scores(scores)
    return DONE


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
    _add_evaluate(commands)
    _add_demo(commands)
    return parser


def _add_predict(commands: Any) -> None:
    predict = commands.add_parser("predict", help="run a network over a volume")
    predict.set_defaults(command=_predict)
    predict.add_argument(
        "input",
        metavar="INPUT",
        nargs="+",
        help="volume: FILE.h5::dataset, .tif or .npy; (C, Z, Y, X)",
    )
    _add_checkpoint(predict, "--checkpoint", required=True)
    predict.add_argument(
        "--output",
        required=True,
        help="OUT.h5 (dataset main) or OUT.tif; for several volumes with {name} or {vol_id} in it",
    )
    predict.add_argument("--overwrite", action="store_true", help="replace OUT if it exists")
    predict.add_argument(
        "--labels", nargs="+", help="truth (Z, Y, X) of each volume to score against, like INPUT"
    )
    predict.add_argument("--config", help="JSON file with settings; options given here overrule it")
    predict.add_argument("--json", action="store_true", help="print the summary as JSON")
    settings = predict.add_argument_group(
        "settings", "numbers for several axes or channels are separated by commas: 8,128,128"
    )
    for name, field in InferenceConfig.model_fields.items():
        _add_setting(settings, name, field.annotation, field.description)


def _add_setting(parser: Any, name: str, kind: Any, description: str | None) -> None:
    option = f"--{name.replace('_', '-')}"
    if kind is bool:
        parser.add_argument(
            option, action=argparse.BooleanOptionalAction, default=None, help=description
        )
    elif get_origin(kind) is Literal:
        parser.add_argument(option, choices=get_args(kind), help=description)
    else:
        is_text = str in (kind, *get_args(kind))
        parser.add_argument(
            option, type=str if is_text else _value, metavar="VALUE", help=description
        )


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
    evaluate.add_argument("--threshold", type=float, default=0.5, help="foreground is above it")
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
    parser.add_argument(name, help="TorchScript, or a state dict with --architecture", **kwargs)
    parser.add_argument("--architecture", metavar="MODULE:CLASS", help="network of a state dict")
    parser.add_argument("--arguments", metavar="JSON", help="its arguments: JSON, or a JSON file")


def _value(text: str) -> Any:
    """Return what a setting's text stands for: JSON, or values separated by commas.

    What it cannot be, the settings say themselves.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return [_value(part) for part in text.split(",")] if "," in text else text
