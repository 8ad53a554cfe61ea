"""MONAI bundles: a folder or zip archive with a configuration, weights and metadata."""

import zipfile
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from napari_seamless.engine.errors import ModelError
from napari_seamless.models.archive import Files, open_files
from napari_seamless.models.graphs import torchscript
from napari_seamless.models.monai_bundle.config import BundleConfig, read_config
from napari_seamless.models.monai_bundle.expressions import Unresolved
from napari_seamless.models.monai_bundle.metadata import Metadata, metadata_of
from napari_seamless.models.monai_bundle.network import RefusedError, build_network, definition_of
from napari_seamless.models.monai_bundle.settings import settings_of
from napari_seamless.models.networks.named import Built
from napari_seamless.models.opened import Opened, Wanted
from napari_seamless.models.sniff import BUNDLE_CONFIGS, sniff_format
from napari_seamless.models.tensors.torch_save import Loaded, open_loaded, read_trusted
from napari_seamless.models.tensors.weights import assembled, pick

KIND = "MONAI bundle"
_MODELS = "models"
_STATE_DICT, _TORCHSCRIPT = f"{_MODELS}/model.pt", f"{_MODELS}/model.ts"
_SUFFIXES = (".pt", ".pth", ".ts")
_LOADS = ("ckpt_path", "checkpointloader::load_path", "handlers::0::load_path")


@dataclass(frozen=True)
class Chosen:
    """Which weights to take.

    Attributes
    ----------
    name : str
        Of the file in the bundle.
    others : tuple of str
        Of the files that could be taken instead, without their folder.
    inside : str or None
        Which set of weights in the file.
    instead : str or None
        TorchScript to fall back on where the network cannot be built without running code.
    """

    name: str
    others: tuple[str, ...] = ()
    inside: str | None = None
    instead: str | None = None


def open_checkpoint(wanted: Wanted) -> Opened:
    """Open a MONAI bundle without running anything that it names.

    Parameters
    ----------
    wanted : Wanted
        `path` is its folder or zip archive, or its configuration or weights in the folder.
        `weights` may be one of the files in "models", or a set of weights in the file.

    Raises
    ------
    UntrustedError
        If its network or its weights would have to run code, and there is no trust.
    ModelError
        If it is damaged or lacks something.
    """
    root, config_name, weights_name = _place(wanted.path)
    with open_files(root, BUNDLE_CONFIGS) as files:
        names = [config_name] if config_name else [n for n in BUNDLE_CONFIGS if n in files]
        if not names:
            raise ModelError(f"{root} has no {BUNDLE_CONFIGS[0]}, so is no {KIND}; get it whole")
        config = read_config(files, names[0])
        chosen = _chosen(files, wanted, weights_name, config)
        return _Opening(files, config, metadata_of(files), wanted, chosen).opened()


def _place(path: Path) -> tuple[Path, str | None, str | None]:
    """Return the bundle's root, and the configuration or weights that the path is of."""
    inside = "/".join(path.parts[-2:])
    if path.is_dir() or path.parent.name not in ("configs", _MODELS):
        return path, None, None
    if inside not in BUNDLE_CONFIGS and sniff_format(path) == "monai_bundle":
        return path, None, None  # a zip that happens to lie in a folder of that name
    if inside in BUNDLE_CONFIGS:
        return path.parent.parent, inside, None
    return path.parent.parent, None, inside


def _chosen(files: Files, wanted: Wanted, name: str | None, config: BundleConfig) -> Chosen:
    found = [each for each in files.folder(_MODELS) if each.endswith(_SUFFIXES)]
    by_name = {short: each for each in found for short in (each, PurePosixPath(each).name)}
    inside = wanted.weights
    if name is None and inside in by_name:
        name, inside = by_name[inside], None
    usual = [each for each in (*_loaded_by(config), _STATE_DICT, _TORCHSCRIPT) if each in found]
    name = name or next(iter([*usual, *found] if len(found) == 1 else usual), None)
    if name is None:
        said = f"; it has {', '.join(found)}: name one (weights)" if found else "; get it whole"
        raise ModelError(f"{files.path} has no {_STATE_DICT}{said}")
    others = tuple(PurePosixPath(each).name for each in found if each != name)
    script = _TORCHSCRIPT if _TORCHSCRIPT in found and name == _STATE_DICT else None
    return Chosen(name, others, inside, script)


def _loaded_by(config: BundleConfig) -> list[str]:
    """Return the weights that the configuration itself would load, as names in the bundle."""
    paths = (config.first(item) for item in _LOADS)
    return [
        f"{_MODELS}/{PurePosixPath(path).name}"
        for path in paths
        if isinstance(path, str) and not isinstance(path, Unresolved)
    ]


@dataclass(frozen=True)
class _Opening:
    files: Files
    config: BundleConfig
    metadata: Metadata
    wanted: Wanted
    chosen: Chosen

    def opened(self) -> Opened:
        wanted, chosen = self.wanted, self.chosen
        if self._is_script(chosen.name):
            return self._script(chosen.name)
        instead = chosen.instead if chosen.instead and self._is_script(chosen.instead) else None
        definition = definition_of(self.config) if wanted.architecture is None else None
        if definition is None and wanted.architecture is None and instead:
            return self._script(instead)
        loaded, inside = self._loaded()
        if definition is None or loaded.module is not None:
            return self._without_definition(loaded, inside)
        try:
            return self._assembled(definition, loaded, inside)
        except RefusedError as error:
            if instead is None:
                raise
            note = f"its network asks to run {', '.join(error.asked)}: {instead} was taken"
            return self._script(instead, note)

    def _assembled(self, definition: Any, loaded: Loaded, inside: Wanted) -> Opened:
        """Return the network that the bundle defines, with its weights."""
        picked = pick(loaded.contents.content, inside)
        built = build_network(
            self.config,
            definition,
            inside.arguments,
            picked.tensors,
            self.files.place,
            inside.trust,
        )
        facts = self._facts(built, (*built.notes, *loaded.notes), picked.name)
        return assembled(
            KIND,
            built.network,
            picked.tensors,
            architecture=built.architecture,
            arguments=built.arguments,
            origin="file",
            **facts
            | {
                "notes": (*facts["notes"], *picked.notes),
                "other_weights": (*facts["other_weights"], *picked.others),
                "refused": (*facts["refused"], *loaded.contents.refused),
            },
        )

    def _without_definition(self, loaded: Loaded, inside: Wanted) -> Opened:
        """Return the weights in the network that comes with them, is given, or is guessed."""
        facts = self._facts(None)
        opened = open_loaded(KIND, loaded, inside, **facts)
        return replace(
            opened,
            weights=_joined(facts["weights"], opened.weights),
            other_weights=(*facts["other_weights"], *opened.other_weights),
        )

    def _loaded(self) -> tuple[Loaded, Wanted]:
        """Return what is in the file of weights, and what is wanted of it."""
        where = self.files.path / self.chosen.name
        with self.files.open(self.chosen.name) as file:
            loaded = read_trusted(file, where, self.wanted.trust)
        return loaded, replace(self.wanted, path=where, weights=self.chosen.inside)

    def _is_script(self, name: str) -> bool:
        """Return whether a file is TorchScript, by what is in it; if that is damaged, by its name.

        People call both kinds of file model.pt.
        """
        try:
            with self.files.open(name) as file, zipfile.ZipFile(file) as archive:
                return any("/code/" in f"/{each}" for each in archive.namelist())
        except zipfile.BadZipFile:  # or of torch before 1.6; opening it says which
            return name.endswith(".ts")

    def _script(self, name: str, *notes: str) -> Opened:
        """Return the network that a file of TorchScript carries."""
        where = self.files.path / name
        with self.files.open(name) as file:
            opened = torchscript.open_file(file, where)
        facts = self._facts(None, (*notes, *opened.notes))
        facts |= {
            "weights": PurePosixPath(name).name,
            "settings": {**opened.settings, **facts["settings"]},
        }
        return replace(opened, format=KIND, **facts)

    def _facts(
        self, built: Built | None, notes: tuple[str, ...] = (), inside: str = ""
    ) -> dict[str, Any]:
        """Return what goes into `Opened` however the network was come by."""
        metadata = self.metadata
        channels, dims = metadata.channels, metadata.dims
        if built is not None:
            channels = built.argument("in_channels") or channels
            dims = built.argument("spatial_dims") or dims
        taken = settings_of(self.config, channels, dims, metadata.size)
        return {
            "settings": taken.settings,
            "weights": _joined(PurePosixPath(self.chosen.name).name, inside),
            "other_weights": self.chosen.others,
            "details": metadata.details,
            "notes": (*notes, *taken.notes, *metadata.notes),
            "refused": self.config.asked(),
        }


def _joined(file: str, inside: str | None) -> str:
    return f"{file}: {inside}" if inside else file
