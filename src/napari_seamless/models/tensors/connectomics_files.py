"""What the configurations of PyTorch Connectomics say of a checkpoint.

Version 1.x saves weights and the state of training; its YAML configuration lies beside the
checkpoint, see its `connectomics/config/defaults.py`. Version 2.x saves Lightning checkpoints, its
configuration `config.yaml` lies in the folder above, or, early on, in the checkpoint itself; see
its `connectomics/config/schema`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_seamless.engine.errors import ModelError, one_line
from napari_seamless.models.guarded_yaml import MOST_BYTES, read_yaml
from napari_seamless.models.tensors.connectomics_runs import settings_1, settings_2
from napari_seamless.models.tensors.plain import plain

_MOST_FILES = 20
_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class Configuration:
    """What is known of a checkpoint of PyTorch Connectomics.

    Attributes
    ----------
    architecture : str or None
        As the package names it.
    arguments : mapping
        The configuration, or the part of it that `architecture.build` takes.
    settings : mapping
        Of `InferenceConfig`.
    details : mapping
        For the report.
    notes : tuple of str
        What is not taken over, and what to do instead.
    """

    architecture: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def version_1(path: Path) -> Configuration:
    """Return what the configuration beside a checkpoint of version 1.x says."""
    where, found, notes = _beside(path.parent, "MODEL")
    if found is None:
        return Configuration(
            notes=notes or ("it does not say how its network is built; its .yaml beside it would",)
        )
    settings, more = settings_1(found)
    name = found["MODEL"].get("ARCHITECTURE")
    return Configuration(
        name if isinstance(name, str) else None,
        {key: found[key] for key in ("MODEL", "DATASET") if key in found},
        settings,
        {"configuration": where, "MODEL": found["MODEL"]},
        (*notes, f"settings are those of {where}", *more),
    )


def version_2(path: Path, held: Mapping[str, Any] | None, about: Any) -> Configuration:
    """Return what the configuration of a checkpoint of version 2.x says.

    Parameters
    ----------
    path : Path
        Of the checkpoint.
    held : mapping or None
        The configuration, if the checkpoint holds it.
    about : object
        What the checkpoint says of itself, `pytc_metadata`.
    """
    details: dict[str, Any] = {"pytc_metadata": about} if about else {}
    notes: tuple[str, ...] = ()
    where = "the checkpoint's own configuration"
    found = held
    for folder in (path.parent, path.parent.parent):
        if found is None and not notes:
            where, found, notes = _beside(folder, "model")
    if found is None:
        name = about.get("model_arch") if isinstance(about, Mapping) else None
        which = f"network {name}" if isinstance(name, str) else "network"
        return Configuration(
            details=details,
            notes=(
                *notes,
                f"it does not say how its {which} is configured; its config.yaml beside it would",
            ),
        )
    settings, more = settings_2(found)
    return Configuration(
        _architecture(found["model"]),
        found["model"],
        settings,
        {**details, "configuration": where, "model": found["model"]},
        (*notes, f"settings are those of {where}", *more),
    )


def configuration_in(hyper_parameters: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the configuration in hyper-parameters of version 2.x, if there is one."""
    for values in (hyper_parameters, hyper_parameters.get("cfg"), hyper_parameters.get("config")):
        model = values.get("model") if isinstance(values, Mapping) else None
        if isinstance(model, Mapping) and _architecture(model) is not None:
            return values
    return None


def _architecture(model: Mapping[str, Any]) -> str | None:
    """Return the name of the network; the first 2.x had no level `arch`."""
    arch = model.get("arch")
    name = arch.get("type") if isinstance(arch, Mapping) else model.get("architecture")
    return name if isinstance(name, str) else None


def _beside(folder: Path, section: str) -> tuple[str, dict[str, Any] | None, tuple[str, ...]]:
    """Return the name and content of the one configuration in a folder that has a section.

    Returns
    -------
    str, dict or None, tuple of str
        Notes say why files that might have been meant are not used.
    """
    found: dict[str, dict[str, Any]] = {}
    notes = []
    names = [each for each in sorted(folder.iterdir()) if each.suffix.lower() in _SUFFIXES]
    files = [each for each in names if each.is_file()]
    for file in files[:_MOST_FILES]:
        try:
            content = _loaded(file)
        except ModelError as error:  # it may belong to something else
            notes.append(f"{file.name} beside it was not read: {error}")
            continue
        if isinstance(content, dict) and isinstance(content.get(section), dict):
            found[file.name] = content
    if len(found) > 1:
        return "", None, (f"which of {', '.join(found)} belongs to it is not known; keep one",)
    for name, content in found.items():
        return name, content, ()
    return "", None, tuple(notes)


def _loaded(file: Path) -> Any:
    """Return what a YAML file of plain values holds; any other tag is an error."""
    try:
        with file.open(encoding="utf-8-sig") as stream:
            text = stream.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ModelError(f"it cannot be read: {one_line(error)}") from error
    return plain(read_yaml(text, "it"))
