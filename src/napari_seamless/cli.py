"""The command line. It drains the same run as the widget and turns errors into exit codes.

0 done; 1 failed while running; 2 wrong arguments or unusable input; 130 cancelled.
"""

import argparse
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_seamless.arguments import PROGRAM, UNUSABLE, checkpoint_of, parse, settings_of
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import (
    ConfigError,
    EndedError,
    SeamlessError,
    UnusableInputError,
    WriteError,
    one_line,
)
from napari_seamless.metrics import METRIC_NAMES

if TYPE_CHECKING:
    from napari_seamless.cluster import ClusterRun
    from napari_seamless.engine.forecast import Forecast
    from napari_seamless.engine.run import Run
    from napari_seamless.engine.source import Source
    from napari_seamless.engine.tuned import Tuning
    from napari_seamless.inference import InferenceRun
    from napari_seamless.models import LoadedModel

DONE, FAILED, CANCELLED = 0, 1, 130


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
    options = parse(arguments, predict=_predict, inspect=_inspect, evaluate=_evaluate, demo=_demo)
    try:
        return int(options.command(options))
    except (SeamlessError, MemoryError) as error:
        _complain("; ".join([one_line(error), *getattr(error, "__notes__", [])]))
        return _exit_code(error)
    except KeyboardInterrupt:
        return CANCELLED


def _predict(options: argparse.Namespace) -> int:
    settings = settings_of(options)
    if "patch_size" in settings:
        InferenceConfig(**settings)  # what is wrong in itself is said before torch is loaded
    checkpoint = checkpoint_of(options)
    from napari_seamless.models import load_model

    model = load_model(options.checkpoint, **checkpoint)
    config = model.config(**settings)
    _say_taken(model.report.settings, settings)
    tuning = _tuned(options, model, config)
    with _open_run(options, model, config if tuning is None else tuning.config) as run:
        truth = run.open_labels(options.labels) if options.labels else None
        return _finish(run, truth, options.json, tuning)


def _tuned(
    options: argparse.Namespace, model: "LoadedModel", config: InferenceConfig
) -> "Tuning | None":
    """Find faster settings, if that was asked for, and say what was found."""
    if not options.tune:
        if options.tune_patches != "same":
            raise ConfigError(f"tune-patches {options.tune_patches} needs --tune: pass both")
        return None
    if options.workers is not None or options.scheduler is not None:
        raise ConfigError(
            "tune measures one process, not workers; tune without them, and give them the settings "
            "that it names"
        )
    from napari_seamless.tuning import tune

    tuning = tune(
        options.input,
        model,
        config,
        patches=options.tune_patches,
        tolerance=options.tune_tolerance,
    )
    print(f"{PROGRAM}: {tuning}", file=sys.stderr)
    return tuning


def _open_run(
    options: argparse.Namespace, model: "LoadedModel", config: InferenceConfig
) -> "InferenceRun":
    """Return the run that was asked for, here or on a cluster."""
    cluster = options.scheduler if options.workers is None else options.workers
    common: dict[str, Any] = {
        "overwrite": options.overwrite,
        "resume": options.resume,
        "mask": options.mask,
    }
    if cluster is None:
        from napari_seamless.inference import InferenceRun

        return InferenceRun(
            options.input, model, config, options.output, memory=options.memory, **common
        )
    if options.memory is not None:
        raise ConfigError("memory is of a run in this process; leave it out with workers")
    return _cluster_run()(options.input, model, config, options.output, cluster, **common)


def _cluster_run() -> "type[ClusterRun]":
    try:
        from napari_seamless.cluster import ClusterRun
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"workers need the package {error.name}: pip install 'napari-seamless[cluster]'"
        ) from error
    return ClusterRun


def _finish(
    run: "InferenceRun",
    truth: "list[Source] | None",
    as_json: bool,
    tuning: "Tuning | None",
) -> int:
    """Drain a run, say what came of it, and return the exit code."""
    from napari_seamless.draining import drain, failure_lines, missing_lines

    broken: SeamlessError | None = None
    forecast: Forecast | None = None
    began = time.perf_counter()
    try:
        with _cancelled_by_ctrl_c(run):
            forecast = _foretold(run)
            drain(run)
    except SeamlessError as error:
        broken = error
    facts = _summary(run, time.perf_counter() - began)
    if forecast is not None:
        facts["forecast"] = forecast.facts
    if tuning is not None:
        facts["tuned"] = tuning.facts
    lines = [*missing_lines(run), *failure_lines(run)]
    if broken is not None and broken not in run.failures.values():  # of the forecast
        lines.append(one_line(broken))
    try:
        if truth is not None and run.done and broken is None:
            facts |= run.scores(truth)
            if run.left_out:
                print(f"{PROGRAM}: {run.left_out}", file=sys.stderr)
    finally:  # also if the labels cannot be compared after all
        if broken is None:
            _report({**facts, "failures": lines}, as_json)
        for line in lines:
            _complain(line)
    if broken is not None:
        return _exit_code(broken)
    if run.status == "complete":
        return DONE
    reached_its_end = run.status == "failed" or (facts["missing"] and run.done == run.total)
    return FAILED if reached_its_end else CANCELLED


def _foretold(run: "InferenceRun") -> "Forecast | None":
    """Say on standard error what the run will take, before it goes on; None if it was cancelled."""
    try:
        forecast = run.forecast()
    except EndedError:
        return None
    print(f"{PROGRAM}: {forecast}", file=sys.stderr)
    return forecast


def _summary(run: "InferenceRun", seconds: float) -> dict[str, Any]:
    voxels = sum(
        math.prod(volume.plan.grid.shape) * volume.ran / len(volume.plan.grid)
        for volume in run.volumes
    )
    return {
        "status": run.status,
        "patches": run.done,
        "redundancy": round(run.plan.redundancy, 2),
        "stages": {stage: round(taken, 2) for stage, taken in run.stages.seconds.items()},
        "limited_by": run.stages.busiest,
        "ran": sum(volume.ran for volume in run.volumes),
        "missing": sum(len(volume.failed) for volume in run.volumes),
        "of": run.total,
        "output": [*dict.fromkeys(str(run.paths[vol_id]) for vol_id in sorted(run.written))],
        "seconds": round(seconds, 2),
        "voxels_per_second": round(voxels / seconds),
    }


def _report(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(facts)
        return
    missing = f", {facts['missing']} of them missing," if facts["missing"] else ""
    _say(
        f"{facts['status']}: {facts['patches']} of {facts['of']} patches{missing} in "
        f"{facts['seconds']} s ({facts['voxels_per_second']:,} voxels/s)"
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
    checkpoint = checkpoint_of(options)
    from napari_seamless.models import inspect_checkpoint

    report = inspect_checkpoint(options.checkpoint, **checkpoint)
    _say(json.dumps(report.to_dict()) if options.json else str(report))
    return DONE


def _demo(options: argparse.Namespace) -> int:
    from napari_seamless.demo.show import show_demo

    return show_demo(Path(options.folder))


def _say_taken(known: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Say on standard error which settings come from the checkpoint."""
    taken = [f"{name} {value}" for name, value in known.items() if name not in given]
    if taken:
        print(f"taken from the checkpoint: {', '.join(taken)}", file=sys.stderr)


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
