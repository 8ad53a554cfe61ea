"""The form as one sees it: what folds, what is marked, what fits, and what is always in sight."""

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication, QScrollArea, QToolButton

import networks
from napari_seamless import tuning
from napari_seamless.engine.errors import OutputError
from napari_seamless.engine.tuned import Tuning
from napari_seamless.gui.panel.look import is_problem
from napari_seamless.gui.panel.sections import walk

FIRST_LOOK = ("image", "checkpoint", "patch_size", "overlap", "run_button", "preview", "status")


@pytest.fixture
def session(session_over, volume):
    return session_over(volume)


@pytest.fixture
def ready(session, checkpoint_of):
    """A session whose form can be run."""
    session.choose(checkpoint_of(networks.Doubled), networks.Doubled)
    session.wait_for(lambda: session.status == "Ready")
    return session


def is_marked(field) -> bool:
    return is_problem(field.native)


def marked_lines(widget) -> list[str]:
    """Return the lines of folds and sections that are marked."""
    panels = [each.panel for each in walk(widget) if hasattr(each, "panel")]
    return [each.title for each in panels if is_problem(each.toggleButton())]


class TestRoom:
    def test_a_newcomer_needs_no_scrolling(self, session):
        session.viewer.window._qt_window.resize(1600, 950)
        session.qtbot.wait(100)
        for name in FIRST_LOOK:
            native = session.widget[name].native
            assert native.visibleRegion().boundingRect().size() == native.size(), name

    def test_everything_unfolded_fits_a_narrow_dock(self, session, qtbot):
        widget = session.widget
        session.viewer.layers["volume"].name = "a layer of a very long name " * 5
        for each in walk(widget):
            if hasattr(each, "panel"):
                each.panel.expand()
        widget.say("/a/very/long/path" * 20)
        qtbot.wait(50)
        area = widget.native.findChildren(QScrollArea)[0]
        assert area.widget().minimumSizeHint().width() <= 330
        assert widget.native.minimumSizeHint().width() <= 350

    def test_lines_that_come_and_go_move_nothing(self, session, qtbot):
        widget = session.widget
        widget.say("")
        widget.show_forecast("")
        qtbot.wait(20)
        before = widget.run_button.native.mapTo(widget.native, widget.native.pos())
        widget.say("one line\nand another one")
        widget.show_forecast("175 patches, about 20 s")
        widget.progress.visible = True
        qtbot.wait(20)
        assert widget.run_button.native.mapTo(widget.native, widget.native.pos()) == before

    def test_what_is_folded_away_is_not_reached_with_the_keyboard(self, session, qtbot):
        widget = session.widget
        assert not widget.halo.native.isVisible()
        widget.patches_more.panel.expand()
        assert widget.halo.native.isVisible()
        widget.patches_section.panel.collapse()
        assert not widget.halo.native.isVisible()
        assert not widget.patch_size.native.isVisible()


class TestMarks:
    def test_a_field_that_cannot_work_is_marked_and_so_is_what_hides_it(self, ready):
        widget = ready.widget
        widget.region.value = "0:4,5"
        assert ready.status.startswith("region '0:4,5' is not usable: give z0:z1,y0:y1,x0:x1")
        assert not widget.run_button.enabled
        assert is_marked(widget.region)
        assert marked_lines(widget) == ["Input", "Advanced"]

        widget.region.value = "0:4,0:20,0:20"
        assert ready.status == "Ready"
        assert not is_marked(widget.region)
        assert marked_lines(widget) == []

    def test_what_has_not_been_chosen_yet_is_no_mistake(self, session):
        widget = session.widget
        assert "Choose a checkpoint" in session.status
        assert not is_marked(widget.status)
        assert marked_lines(widget) == []

    def test_the_marked_field_is_the_one_that_was_changed(self, ready):
        for field, value, marked in (
            ("output_scale", "no", "output_scale"),
            ("output_scale", "1/3", "output_scale"),
            ("output", "out.png", "output"),
            ("cluster", "a Dask scheduler", "output"),
        ):
            before = ready.widget[field].value
            ready.widget[field].value = value
            assert is_marked(ready.widget[marked]), ready.status
            assert not ready.widget.run_button.enabled
            ready.widget[field].value = before
            assert not is_marked(ready.widget[marked]), ready.status


class TestSettings:
    def test_fields_reach_the_run(self, ready):
        widget = ready.widget
        values = {
            "halo": (1, 2, 2),
            "region": "0:4,0:20,0:20",
            "head": "boundary",
            "planes": "z",
            "padding": "edge",
            "grid": "even",
            "output_scale": "1,2,2",
            "disagreement": True,
            "labelling": "threshold",
            "threshold": 0.25,
            "fill_value": -1.0,
        }
        for name, value in values.items():
            widget[name].value = value
        (request,) = widget.requests()
        config = request.plan.config
        assert (config.halo, config.region) == ((1, 2, 2), ((0, 4), (0, 20), (0, 20)))
        assert (config.head, config.planes, config.padding) == ("boundary", "z", "edge")
        assert (config.grid, config.output_scale) == ("even", (1, 2, 2))
        assert (config.labelling, config.threshold, config.fill_value) == ("threshold", 0.25, -1)
        assert config.disagreement

    def test_the_form_as_it_opens_asks_for_the_defaults(self, session):
        config = session.widget.plan().config
        assert config.head is config.region is config.time_points is None
        assert (config.output_scale, config.halo) == ((1, 1, 1), (0, 0, 0))
        assert (config.labelling, config.disagreement) == ("none", False)

    def test_the_threshold_shows_with_what_it_belongs_to(self, session):
        widget = session.widget
        widget.output_section.panel.expand()
        widget.output_more.panel.expand()
        assert not widget.threshold.visible
        widget.labelling.value = "threshold"
        assert widget.threshold.visible

    def test_wanting_to_see_disagreement_sums_it_up(self, session):
        assert not session.widget.disagreement.value
        session.widget.show_disagreement.value = True
        assert session.widget.plan().config.disagreement

    def test_the_picture_follows_what_is_typed(self, session):
        widget, picture = session.widget, session.widget._profile
        widget.patch_size.value = (4, 16, 48)
        assert (picture.profile.axis, picture.profile.stride) == ("x", 24)
        widget.overlap.value = 0.25
        assert picture.profile.stride == 36
        widget.blending.value = "constant"
        assert set(picture.profile.taper) == {1.0}


class TestRuns:
    def test_run_queues_and_a_waiting_run_can_be_dropped(self, session, checkpoint_of, qtbot):
        widget = session.widget
        session.choose(checkpoint_of(networks.Gated), networks.Gated)
        session.wait_for(lambda: session.status == "Ready")
        session.press("run_button")
        assert widget.run_button.text == "Queue"
        widget.overlap.value = 0.25
        session.press("run_button")
        widget.overlap.value = 0.1
        session.press("run_button")
        lines = widget._footer.queue
        qtbot.wait(50)
        assert lines.isVisible()
        buttons = [each for each in lines.findChildren(QToolButton) if each.isVisible()]
        assert len(buttons) == len(widget.controller.queue) == 2
        qtbot.mouseClick(buttons[0], Qt.MouseButton.LeftButton)
        (left,) = widget.controller.queue
        assert left.request.plan.config.overlap == 0.1

        widget.controller.drop(0)
        assert not lines.isVisible()
        session.press("cancel_button")
        networks.let_through(1000)
        session.wait_for_end()
        assert widget.run_button.text == "Run"

    def test_the_next_run_is_checked_while_one_is_on(self, session, checkpoint_of):
        widget = session.widget
        session.choose(checkpoint_of(networks.Gated), networks.Gated)
        session.wait_for(lambda: session.status == "Ready")
        session.press("run_button")
        widget.region.value = "5"
        assert widget.forecast.value.startswith("Next run: region '5' is not usable")
        assert not widget.run_button.enabled
        widget.region.value = None
        assert widget.run_button.enabled
        assert not widget.forecast.value.startswith("Next run")
        session.press("cancel_button")
        networks.let_through(1000)
        session.wait_for_end()

    def test_details_of_a_problem_can_be_copied(self, session, checkpoint_of, volume):
        widget, details = session.widget, session.widget._footer.details
        assert not details.isVisible()
        volume[3, 5, 7] = np.nan
        session.choose(checkpoint_of(networks.Doubled), networks.Doubled)
        session.wait_for(lambda: session.status == "Ready")
        session.press("run_button")
        line = session.wait_for_end()
        session.qtbot.wait(300)
        assert session.status == line
        assert details.isVisible()
        details.panel.expand()
        details.copy_button.click()
        clipboard = QApplication.clipboard()
        assert clipboard is not None
        assert "(3, 5, 7)" in clipboard.text()
        assert '"patch_size"' in clipboard.text()

        networks.let_through(1)
        widget.fill({"region": ((4, 12), (0, 40), (0, 40))})
        session.press("run_button")
        assert not details.isVisible()
        session.wait_for_end()

    def test_the_seam_score_has_a_line(self, session):
        widget = session.widget
        widget.debug_section.panel.expand()
        assert not widget.seam_score.visible
        widget.say_seams("seams: 1.03; 1 is none")
        assert widget.seam_score.visible
        assert widget.seam_score.value == "seams: 1.03; 1 is none"

    def test_what_is_offered_is_done_when_pressed(self, session, qtbot):
        done = []
        session.widget.offer([("Use less", lambda: done.append("less")), ("No", done.clear)])
        offers = session.widget._footer._offers
        assert offers.isVisible()
        offers._row.itemAt(0).widget().click()
        assert done == ["less"]
        session.widget.offer([])
        assert not offers.isVisible()


class TestImages:
    def test_selected_images_are_predicted_one_after_the_other(self, ready, volume, tmp_path):
        widget, viewer = ready.widget, ready.viewer
        assert not widget.all_selected.visible
        other = viewer.add_image(2 * volume, name="other")
        viewer.add_image(volume, name="third")
        viewer.layers.selection = {viewer.layers["volume"], other}
        assert widget.all_selected.visible
        widget.image.value = viewer.layers["volume"]
        assert len(widget.requests()) == 1
        widget.all_selected.value = True
        widget.output.value = "/"  # where one begins to type a path
        assert not widget.run_button.enabled
        widget.output.value = tmp_path / "out.zarr"

        first, second = widget.requests()
        assert [each.plan.image.name for each in (first, second)] == ["volume", "other"]
        assert first.plan.config == second.plan.config
        assert first.output == tmp_path / "out volume.zarr"
        assert second.output == tmp_path / "out other.zarr"
        (tmp_path / "out other.zarr").mkdir()
        with pytest.raises(OutputError, match=r"out other\.zarr exists; choose another name, or"):
            widget.requests()
        widget.output.value = tmp_path / "new.zarr"
        widget.output.value = tmp_path / "out.zarr"
        assert "out other.zarr exists" in ready.status
        assert not widget.anew_row.native.isHidden()
        viewer.layers.selection = {other}
        assert not widget.all_selected.visible
        assert len(widget.requests()) == 1

    def test_the_scope_is_what_is_shown_when_it_is_asked_for(self, ready):
        widget, viewer = ready.widget, ready.viewer
        widget.scope.value = "current plane"
        viewer.dims.set_current_step(0, 7)
        assert widget.plan().config.region == ((7, 8), (0, 40), (0, 40))
        viewer.dims.ndisplay = 3
        ready.wait_for(lambda: "3-D" in ready.status)
        assert is_marked(widget.scope)
        widget.scope.value = "whole volume"
        assert ready.status == "Ready"
        assert widget.plan().config.region is None


class TestTuning:
    def test_the_fields_and_what_has_no_field_show_what_was_found(self, ready, monkeypatch):
        asked = []

        def tune(source, model, config, *, patches, may_go_on):
            asked.append((patches, config.patch_size))
            changed = {"patch_size": [8, 24, 24], "overlap": [2, 8, 8], "channels_last": True}
            tuned = config.changed(changed)
            return Tuning(tuned, changed, 2.0, (3.0, 1.5), 0.0, 0.0, None, (), 1.0)

        monkeypatch.setattr(tuning, "tune", tune)
        widget = ready.widget
        widget.tune_patches.value = "larger"
        before = tuple(widget.patch_size.value)
        ready.press("tune_button")
        ready.wait_for(lambda: ready.status.startswith("Tuned: 2.00 times as fast"))

        assert asked == [("larger", before)]
        assert widget.tune_button.text == "Tune"
        assert tuple(widget.patch_size.value) == (8, 24, 24)
        assert "overlap (2,8,8)" in widget.overlap.label
        assert widget.others.value == "channels_last True"
        config = widget.requests()[0].plan.config
        assert (config.overlap, config.channels_last) == ((2, 8, 8), True)

    def test_the_button_waits_for_a_form_that_can_be_run(self, session, ready):
        assert ready.widget.tune_button.enabled
        ready.widget.region.value = "5"
        assert not ready.widget.tune_button.enabled
