"""Settings of the form: remembered, saved, loaded, dropped, reset."""

import json
from pathlib import Path

import h5py
import napari
import numpy as np
import pytest
import tifffile
import zarr
from magicgui.widgets import CheckBox, ComboBox, FileEdit, FloatSpinBox, LineEdit, TupleEdit
from napari.components import ViewerModel
from napari.utils.notifications import notification_manager
from qtpy.QtWidgets import QApplication

import networks
from napari_seamless.cli import main
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import ConfigError, SourceError
from napari_seamless.gui.panel.file_settings import FileSettings
from napari_seamless.gui.presets.dropped import get_reader, presets_of
from napari_seamless.gui.presets.presets import Presets
from napari_seamless.gui.presets.recent import LastRun, RecentCheckpoints
from napari_seamless.gui.presets.run_facts import facts_in, found_in
from napari_seamless.gui.runs.export import export_metadata, write_volume
from napari_seamless.inference import InferenceRun

SETTINGS = ("patch_size", "overlap", "blending", "activation", "normalization", "device")


class SmallForm:
    """Fields as the form has them, a command, and what was said."""

    def __init__(self, viewer: ViewerModel | None = None, keeps: bool = True) -> None:
        fields = [
            FileEdit(name="checkpoint"),
            LineEdit(name="architecture"),
            LineEdit(name="arguments", value="{}"),
            ComboBox(name="weights", choices=()),
            TupleEdit(name="patch_size", value=(8, 128, 128), options={"max": 4096}),
            FloatSpinBox(name="overlap", value=0.5, min=0, max=0.99, step=0.05),
            ComboBox(name="blending", choices=("gaussian", "hann")),
            ComboBox(name="activation", choices=("none", "sigmoid"), value="sigmoid"),
            ComboBox(name="normalization", choices=("none", "dtype"), value="dtype"),
            ComboBox(name="device", choices=("auto", "cpu")),
            FloatSpinBox(name="memory", value=0, max=1000),
            FileEdit(name="output", nullable=True, value=None),
            CheckBox(name="start_anew"),
            CheckBox(name="trust"),
        ]
        self.fields = {field.name: field for field in fields}
        known = {name: self.fields[name] for name in SETTINGS}
        self.settings = FileSettings(known) if keeps else None
        self.said: list[tuple[str, bool]] = []
        self.command, self.note = "napari-seamless predict 'a b.h5'", ""
        self.presets = Presets(
            lambda: self.fields,
            lambda: (self.command, self.note),
            lambda line, is_problem: self.said.append((line, is_problem)),
            settings=self.settings,
            viewer=viewer,
        )

    def __getitem__(self, name: str):
        return self.fields[name].value

    def put(self, **values) -> None:
        for name, value in values.items():
            self.fields[name].value = value

    @property
    def values(self) -> dict:
        return {name: field.value for name, field in self.fields.items()}


@pytest.fixture
def form(qtbot) -> SmallForm:
    return SmallForm()


@pytest.fixture
def checkpoint(checkpoint_of) -> Path:
    return checkpoint_of(networks.Doubled)


class TestRememberedSettings:
    def test_the_next_session_begins_as_the_last_run_did(self, form, checkpoint, tmp_path):
        form.put(checkpoint=checkpoint, architecture="networks:Doubled", arguments='{"a": 1}')
        form.put(patch_size=(4, 16, 32), overlap=0.25, blending="hann", activation="none")
        form.put(device="cpu", memory=1.5)
        form.put(output=tmp_path / "out.zarr", start_anew=True, trust=True)
        form.presets.remember()
        later = SmallForm()
        later.presets.recall()

        expected = {**form.values, "output": None, "start_anew": False, "trust": False}
        assert later.values == expected
        assert later.said == []

    def test_what_the_last_run_used_is_not_overruled_by_its_checkpoint(self, form, checkpoint):
        form.put(checkpoint=checkpoint, overlap=0.5)  # the default, chosen by the user
        form.presets.remember()
        later = SmallForm()
        later.presets.recall()
        later.settings.take({"overlap": 0.75, "blending": "hann"})

        assert (later["overlap"], later["blending"]) == (0.5, "gaussian")

    def test_settings_that_no_field_holds_are_remembered_too(self, form):
        form.settings.put({"halo": (0, 8, 8), "overlap": (0.5, 0.25, 0)})
        form.presets.remember()
        later = SmallForm()
        later.presets.recall()

        assert later.settings.values()["overlap"] == (0.5, 0.25, 0)
        assert later.settings.without_field == {"halo": (0, 8, 8)}
        assert later["overlap"] == 0.5

    def test_what_is_gone_is_left_at_its_default(self, form, checkpoint):
        form.fields["device"].choices = ("auto", "cpu", "cuda")
        form.put(checkpoint=checkpoint, architecture="a:B", device="cuda", overlap=0.25)
        form.presets.remember()
        checkpoint.unlink()
        later = SmallForm()
        later.presets.recall()

        assert (later["device"], later["overlap"], later["architecture"]) == ("auto", 0.25, "")
        assert later["checkpoint"] == Path()
        expected = f"{checkpoint} is not there any more; choose a checkpoint"
        assert later.said == [(expected, True)]

    @pytest.mark.parametrize(
        "damage", ["{oops", "[]", '{"settings": 5, "fields": []}', '{"settings": {"overlap": {}}}']
    )
    def test_damage_is_no_error(self, form, damage):
        LastRun()._settings.setValue("last_run", damage)
        before = form.values
        form.presets.recall()

        assert (form.values, form.said) == (before, [])

    def test_weights_are_chosen_when_the_checkpoint_has_been_read(self, form, checkpoint):
        form.fields["weights"].choices = (("raw", None), ("ema", "ema"))
        form.put(checkpoint=checkpoint, weights="ema")
        form.presets.remember()
        later = SmallForm()
        later.presets.recall()
        assert later["weights"] is None
        later.fields["weights"].choices = (("raw", None), ("ema", "ema"))
        later.settings.take({})

        assert later["weights"] == "ema"

    def test_reset_puts_all_fields_to_their_defaults(self, form, checkpoint):
        before = form.values
        form.put(checkpoint=checkpoint, architecture="a:B", overlap=0.25, memory=2, trust=True)
        form.settings.put({"halo": (0, 8, 8), "activation": "softmax"})
        form.presets.reset()

        assert form.values == before
        assert form.settings.without_field == {}
        assert form.fields["activation"].choices == ("none", "sigmoid")
        form.settings.take({"overlap": 0.75})  # a checkpoint may speak again
        assert form["overlap"] == 0.75


class TestSavedSettings:
    def test_they_come_back_with_those_that_no_field_holds(self, form, tmp_path):
        form.put(patch_size=(4, 16, 32), blending="hann")
        form.settings.put({"halo": (0, 8, 8), "overlap": 0.333, "tta": "flip:x"})
        form.presets.save(tmp_path / "run.json")
        config = InferenceConfig.from_json((tmp_path / "run.json").read_text())
        assert (config.halo, config.overlap, config.tta) == ((0, 8, 8), 0.333, "flip:x")
        later = SmallForm()
        later.presets.load(tmp_path / "run.json")

        assert later.presets.config() == config
        assert later["patch_size"] == (4, 16, 32)
        assert later.said == [("Settings of run.json taken", False)]

    def test_the_form_learns_of_what_no_field_holds(self, form):
        seen = []
        form.fields["overlap"].changed.connect(lambda: seen.append(form.presets.config().overlap))
        form.settings.put({"overlap": (0.5, 0.25, 0)})

        assert seen[-1] == (0.5, 0.25, 0)

    def test_a_setting_that_was_typed_later_counts(self, form):
        form.settings.put({"overlap": (0.5, 0.25, 0), "activation": "softmax"})
        assert form.fields["overlap"].label == "overlap (0.5,0.25,0)"
        form.put(overlap=0.25, activation="none")

        assert form.fields["overlap"].label == "overlap"
        assert form.presets.config().overlap == 0.25
        assert form.presets.config().activation == "none"

    def test_they_work_on_the_command_line_and_the_other_way_round(
        self, form, checkpoint, tmp_path, volume
    ):
        with h5py.File(tmp_path / "volume.h5", "w") as file:
            file["raw"] = volume
        form.put(patch_size=(4, 16, 16), overlap=0.25, activation="none", device="cpu")
        form.presets.save(tmp_path / "run.json")
        output = tmp_path / "out.h5"
        arguments = [f"{tmp_path}/volume.h5::raw", "--checkpoint", str(checkpoint)]
        arguments += ["--architecture", "networks:Doubled", "--output", str(output)]
        assert main(["predict", *arguments, "--config", str(tmp_path / "run.json")]) == 0
        with h5py.File(output) as file:
            config = json.loads(file["main"].attrs["config"])
            np.testing.assert_allclose(file["main"][0], 2 * volume, rtol=1e-6)
        assert InferenceConfig(**config) == form.presets.config()

        later = SmallForm()
        later.presets.load(output)  # beside the checkpoint, which it names
        assert later.presets.config() == form.presets.config()
        assert later["checkpoint"] == checkpoint
        hand_made = {"patch_size": [4, 16, 16], "batch_size": 2, "overlap": 0}
        (tmp_path / "hand.json").write_text(json.dumps(hand_made))
        later.presets.load(tmp_path / "hand.json")
        assert later["overlap"] == 0
        assert later.presets.config().batch_size == 2

    def test_what_cannot_be_taken_is_said_with_the_reason(self, form, tmp_path):
        config = {"patch_size": [4, 16, 16], "overlap": 7.5, "colour": 3, "normalization": "fixed"}
        facts = {"config": config, "checkpoint": "gone.pt", "architecture": "os:system"}
        (tmp_path / "run.json").write_text(json.dumps(facts))
        form.presets.load(tmp_path / "run.json")
        ((line, is_problem),) = form.said

        assert form["patch_size"] == (4, 16, 16)
        assert (form["overlap"], form["normalization"]) == (0.5, "dtype")
        assert (form["checkpoint"], form["architecture"]) == (Path(), "")
        assert is_problem
        assert "\n" not in line
        assert line.startswith("Settings of run.json taken, but not: ")
        for part in (
            "colour is no setting",
            "overlap 7.5 does not fit",
            "normalization 'fixed' needs mean_std",
            "checkpoint gone.pt (no such file here; choose it)",
            "architecture os:system (it would be imported; type it if you trust it)",
        ):
            assert part in line

    def test_without_a_place_to_keep_them_settings_without_a_field_are_said(self, qtbot, tmp_path):
        form = SmallForm(keeps=False)
        config = InferenceConfig(patch_size=(4, 8, 8), halo=(0, 2, 2), activation="none")
        (tmp_path / "run.json").write_text(config.to_json())
        form.presets.load(tmp_path / "run.json")

        assert (form["patch_size"], form["activation"]) == ((4, 8, 8), "none")
        expected = "Settings of run.json taken, but not: halo (0, 2, 2) (no field holds it)"
        assert form.said == [(expected, True)]

    def test_a_region_needs_a_field_that_shows_it(self, form, tmp_path):
        config = InferenceConfig(patch_size=(4, 8, 8), region="0:4,0:8,0:8")
        (tmp_path / "run.json").write_text(config.to_json())
        form.presets.load(tmp_path / "run.json")

        assert "region" in form.said[0][0]
        assert form.presets.config().region is None

    def test_the_checkpoint_of_a_run_is_found_and_not_trusted(self, form, checkpoint, tmp_path):
        RecentCheckpoints().add(checkpoint)
        (tmp_path / "elsewhere").mkdir()
        path = tmp_path / "elsewhere" / "run.json"
        facts = {"config": {}, "checkpoint": "Doubled.pt", "architecture": "UNet"}
        path.write_text(json.dumps({**facts, "arguments": {"a": 1}, "trust": True}))
        form.put(trust=True)
        form.fields["checkpoint"].changed.connect(lambda: form.put(trust=False))  # as the form does
        form.presets.load(path)

        assert form["checkpoint"] == checkpoint
        assert (form["architecture"], form["arguments"]) == ("UNet", '{"a": 1}')
        assert form["trust"] is False

    def test_an_architecture_that_was_found_in_the_file_is_left_to_it(self, form, tmp_path):
        config = {"blending": "hann"}
        facts = {"config": config, "architecture": "os:system", "architecture_origin": "file"}
        (tmp_path / "run.json").write_text(json.dumps(facts))
        form.presets.load(tmp_path / "run.json")

        assert form["architecture"] == ""
        assert form.said == [("Settings of run.json taken", False)]

    @pytest.mark.parametrize(
        ("facts", "why"),
        [
            ({"config": {}}, "it holds no settings"),
            ({"config": {"colour": 3}}, "colour is no setting of this version"),
            (
                {"config": {"a": 1}, "checkpoint": "gone.pt", "architecture": "os:system"},
                "a is no setting of this version; checkpoint gone.pt (no such file here; choose "
                "it); architecture os:system (it would be imported; type it if you trust it)",
            ),
        ],
    )
    def test_where_nothing_can_be_taken_nothing_is_said_to_be(self, form, tmp_path, facts, why):
        (tmp_path / "run.json").write_text(json.dumps(facts))
        before = form.values
        form.presets.load(tmp_path / "run.json")

        assert form.values == before
        assert form.said == [(f"No settings of run.json taken: {why}", True)]

    def test_a_checkpoint_alone_counts_as_taken(self, form, checkpoint, tmp_path):
        facts = {"config": {"colour": 3}, "checkpoint": str(checkpoint)}
        (tmp_path / "run.json").write_text(json.dumps(facts))
        form.presets.load(tmp_path / "run.json")

        assert form["checkpoint"] == checkpoint
        expected = "Settings of run.json taken, but not: colour is no setting of this version"
        assert form.said == [(expected, True)]

    @pytest.mark.parametrize("text", ["{oops", "[1]", '{"name": "else"}', "\xff"])
    def test_what_is_no_json_of_a_run_is_one_line(self, form, tmp_path, text):
        path = tmp_path / "other.json"
        path.write_bytes(text.encode("latin-1"))
        before = form.values
        form.presets.load(path)
        ((line, is_problem),) = form.said

        assert form.values == before
        assert is_problem
        assert line.startswith("Not loaded: ")
        assert "other.json" in line
        assert "\n" not in line

    def test_a_file_that_cannot_be_written_is_one_line(self, form, tmp_path):
        form.presets.save(tmp_path / "no" / "folder.json")
        ((line, is_problem),) = form.said

        assert is_problem
        assert line.startswith("Not saved: ")
        assert "folder.json" in line


class TestResults:
    CONFIG = InferenceConfig(
        patch_size=(4, 16, 16), overlap=0.25, activation="none", halo=(0, 2, 2), device="cpu"
    )

    @pytest.fixture(params=[".zarr", ".h5", ".tif"])
    def written(self, request, tmp_path, volume, checkpoint) -> Path:
        """Return a result that a run wrote."""
        path = tmp_path / f"out{request.param}"
        with InferenceRun(volume, networks.Doubled(), self.CONFIG, path) as run:
            for _ in run:
                pass
        return path

    def test_a_result_gives_the_settings_of_its_run(self, form, written):
        form.presets.load(written)

        assert form.presets.config() == self.CONFIG
        assert form.said == [(f"Settings of {written.name} taken", False)]

    def test_the_metadata_of_a_zarr_can_be_chosen_in_a_dialog(self, written):
        if written.suffix == ".zarr":
            assert facts_in(written / "zarr.json") == facts_in(written)
            assert InferenceConfig(**facts_in(written)["config"]) == self.CONFIG

    def test_an_exported_layer_gives_them_too(self, form, volume, tmp_path):
        facts = {"status": "complete", "config": self.CONFIG.model_dump(mode="json")}
        layer = ViewerModel().add_image(volume, metadata={"napari-seamless": facts})
        path = tmp_path / "exported.zarr"
        assert write_volume(path, volume[None], export_metadata(layer)) is None
        form.presets.load(path)

        assert form.presets.config() == self.CONFIG

    def test_the_selected_layer_gives_them(self, form, volume, written):
        facts = {"config": self.CONFIG.model_dump(mode="json")}
        viewer = ViewerModel()
        form.presets.take_from(
            viewer.add_image(volume, name="p", metadata={"napari-seamless": facts})
        )
        assert form.said == [("Settings of layer 'p' taken", False)]
        assert form.presets.config() == self.CONFIG
        form.said.clear()
        form.presets.take_from(viewer.add_image(volume, name="raw"))
        form.presets.take_from(None)

        assert form.said == [
            ("Not loaded: layer 'raw' has no settings of a run; select a prediction", True),
            ("Select a layer with a prediction first", True),
        ]

    def test_files_of_others_say_nothing_of_a_run(self, tmp_path, volume):
        tifffile.imwrite(tmp_path / "a.tif", volume, description="words")
        tifffile.imwrite(tmp_path / "b.tif", volume)
        zarr.create_array(tmp_path / "c.zarr", data=volume)
        with h5py.File(tmp_path / "d.h5", "w") as file:
            file["raw"] = volume
        (tmp_path / "e.tif").write_bytes(b"damage")
        for name in ("a.tif", "b.tif", "c.zarr", "d.h5", "e.tif", "absent.h5"):
            with pytest.raises(SourceError, match=name):
                facts_in(tmp_path / name)


def test_usable_settings_stay_when_others_are_not():
    found = found_in({"normalization": "fixed", "mean_std": [1, 2], "tta": "spin", "overlap": "x"})

    assert found.settings == {"normalization": "fixed", "mean_std": (1.0, 2.0)}
    assert len(found.left_out) == 2
    with pytest.raises(ConfigError):
        InferenceConfig(patch_size=(8, 8, 8), tta="spin")


def test_the_command_is_on_the_clipboard(form):
    form.presets.copy_command()
    assert QApplication.clipboard().text() == "napari-seamless predict 'a b.h5'"
    assert form.said.pop() == ("The command line is on the clipboard", False)
    form.note = "Copied, but it rains"
    form.presets.copy_command()
    assert form.said.pop() == ("Copied, but it rains", True)
    form.presets._command = lambda: InferenceConfig()
    form.presets.copy_command()
    assert form.said.pop() == ("No command: patch_size is required", True)


def test_the_menu_offers_everything(form):
    actions = [action.text() for action in form.presets.native.menu().actions()]

    assert actions == [
        *("Save settings…", "Load settings…", "Settings of the selected layer"),
        *("Copy command", "Reset"),
    ]


class TestDropping:
    @pytest.fixture
    def viewer(self, make_napari_viewer):
        return make_napari_viewer(show=True)

    @pytest.fixture
    def path(self, tmp_path) -> Path:
        path = tmp_path / "run.json"
        path.write_text(InferenceConfig(patch_size=(4, 16, 32), overlap=0.25).to_json())
        return path

    def drop(self, viewer, path: Path) -> None:
        """Do what napari does when a file is dropped on its window."""
        viewer.window._qt_viewer._qt_open([str(path)], stack=False)

    def test_settings_go_into_the_form_that_is_open(self, viewer, path, qtbot):
        _, widget = viewer.window.add_plugin_dock_widget("napari-seamless", "Blended inference")
        self.drop(viewer, path)

        assert (widget.patch_size.value, widget.overlap.value) == ((4, 16, 32), 0.25)
        assert len(viewer.layers) == 0

    def test_the_form_is_opened_if_none_is(self, viewer, path):
        dock, old = viewer.window.add_plugin_dock_widget("napari-seamless", "Blended inference")
        viewer.window.remove_dock_widget(dock)
        self.drop(viewer, path)
        (presets,) = [presets_of(viewer)]

        assert presets is not None
        assert presets.config().patch_size == (4, 16, 32)
        assert old.patch_size.value == (8, 128, 128)

    def test_a_form_of_another_viewer_is_left_alone(self, viewer, path, make_napari_viewer):
        other = make_napari_viewer(show=True)
        _, left = viewer.window.add_plugin_dock_widget("napari-seamless", "Blended inference")
        _, right = other.window.add_plugin_dock_widget("napari-seamless", "Blended inference")
        assert presets_of(viewer) is not presets_of(other)
        assert napari.current_viewer() is other
        self.drop(other, path)

        assert left.patch_size.value == (8, 128, 128)
        assert right.patch_size.value == (4, 16, 32)

    def test_json_of_others_is_one_line_of_naparis(self, viewer, tmp_path):
        _, widget = viewer.window.add_plugin_dock_widget("napari-seamless", "Blended inference")
        for number, text in enumerate(['{"name": "else"}', "{oops", "[1, 2]"]):
            path = tmp_path / f"other {number}.json"
            path.write_text(text)
            self.drop(viewer, path)
            said = notification_manager.records[-1]

            assert said.severity == "error"
            assert path.name in said.message
            assert "\n" not in said.message
            assert widget.patch_size.value == (8, 128, 128)
            assert len(viewer.layers) == 0
            assert get_reader([str(path)]) is None
            assert get_reader(str(path.with_suffix(".txt"))) is None

    def test_a_result_is_opened_and_offers_its_settings(self, viewer, tmp_path, volume):
        config = InferenceConfig(patch_size=(4, 16, 16), overlap=0.25, activation="none")
        path = tmp_path / "out.h5"
        with InferenceRun(volume, networks.Doubled(), config, path) as run:
            for _ in run:
                pass
        _, widget = viewer.window.add_plugin_dock_widget("napari-seamless", "Blended inference")
        viewer.open(path, plugin="napari-seamless")
        (layer,) = viewer.layers
        viewer.layers.selection.active = layer
        assert widget.patch_size.value == (8, 128, 128)  # nothing that surprises
        menu = presets_of(viewer).native.menu()
        (action,) = [each for each in menu.actions() if "selected layer" in each.text()]
        action.trigger()

        assert widget.patch_size.value == (4, 16, 16)
        assert presets_of(viewer).config() == config
