"""Tuning as a user asks for it: from Python and the command line, and remembered."""

import json
import re

import h5py
import numpy as np
import pytest
import torch

import napari_seamless as ns
import networks
from napari_seamless import tuning
from napari_seamless.cli import main
from napari_seamless.engine.errors import ConfigError, ModelError
from napari_seamless.engine.tuned import Tuning

CONFIG = ns.InferenceConfig(patch_size=(4, 8, 8), normalization="none", device="cpu")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setattr(tuning, "user_cache_path", lambda name: folder / name)
    return folder / "napari-seamless" / "tuned.json"


@pytest.fixture
def found(monkeypatch):
    """Count how often something is measured; each time the same is found, twice as fast."""
    calls = []

    def tune_network(source, module, config, **options):
        calls.append(options)
        changed = {"batch_size": 4, "overlap": [2, 4, 4]}
        return Tuning(
            config.changed(changed), changed, 2.0, (6.0, 3.0), 0.5, 0.25, None, (), seconds=1.0
        )

    monkeypatch.setattr(tuning, "tune_network", tune_network)
    return calls


@pytest.fixture
def files(tmp_path):
    with h5py.File(tmp_path / "volume.h5", "w") as file:
        file["raw"] = np.random.default_rng(3).random((8, 20, 20), dtype=np.float32)
    torch.save(networks.Doubled().state_dict(), tmp_path / "net.pt")
    networks.reset()
    return tmp_path


VOLUME = np.random.default_rng(1).random((8, 20, 20), dtype=np.float32)


def test_what_was_found_is_used_again(found, cache):
    first = ns.tune(VOLUME, networks.Doubled(), CONFIG)
    second = ns.tune(VOLUME, networks.Doubled(), CONFIG)

    assert len(found) == 1
    assert second.config == first.config == CONFIG.changed({"batch_size": 4, "overlap": (2, 4, 4)})
    assert str(second) == (
        "2.00 times as fast with batch_size 4, overlap [2, 4, 4], redundancy 3.00 instead of 6.00; "
        "predictions differ by 0.2 on average and 0.5 at most (found before)"
    )
    assert len(json.loads(cache.read_text())) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"config": CONFIG.changed({"activation": "sigmoid"})},
        {"source": VOLUME[:6]},
        {"model": networks.Ramp()},
        {"patches": "larger"},
        {"tolerance": 1e-3},
        {"remember": False},
    ],
    ids=lambda other: next(iter(other)),
)
def test_it_is_measured_anew_for_anything_else(found, other):
    given = {"source": VOLUME, "model": networks.Doubled(), "config": CONFIG}
    ns.tune(**given)
    ns.tune(**(given | other))
    assert len(found) == 2


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 1}'])
def test_a_damaged_memory_is_as_good_as_none(found, cache, content):
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    ns.tune(VOLUME, networks.Doubled(), CONFIG)
    ns.tune(VOLUME, networks.Doubled(), CONFIG)
    assert len(found) == 1


def test_only_the_newest_are_kept(found, cache, monkeypatch):
    monkeypatch.setattr(tuning, "MOST_REMEMBERED", 2)
    for planes in (3, 4, 5):
        ns.tune(VOLUME[:planes], networks.Doubled(), CONFIG)
    ns.tune(VOLUME[:5], networks.Doubled(), CONFIG)
    assert len(found) == 3
    ns.tune(VOLUME[:3], networks.Doubled(), CONFIG)
    assert len(found) == 4


def test_what_was_broken_off_is_not_remembered(found, cache):
    ns.tune(VOLUME, networks.Doubled(), CONFIG, may_go_on=lambda: False)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_no_error(found, cache):
    cache.parent.parent.write_text("a file where the folder should be")
    assert ns.tune(VOLUME, networks.Doubled(), CONFIG).gain == 2


@pytest.mark.parametrize("wrong", [{"tolerance": -1}, {"tolerance": 1}, {"seconds": -1}])
def test_limits_that_cannot_be_are_refused(wrong):
    with pytest.raises(ConfigError, match="give a share of the largest value"):
        ns.tune(VOLUME, networks.Doubled(), CONFIG, **wrong)


def test_a_volume_that_is_not_there_is_one_line():
    with pytest.raises(OSError, match=r"nowhere\.h5"):
        ns.tune("nowhere.h5", networks.Doubled(), CONFIG)


def test_it_works_for_real():
    torch.manual_seed(0)
    network = torch.nn.Conv3d(1, 1, 3, padding=1).eval()
    tuned = ns.tune(VOLUME, network, CONFIG, patches="halo", seconds=1)
    assert tuned.field.margin == (1, 1, 1)
    assert tuned.config.overlap == 0
    prediction = ns.predict(VOLUME, network, tuned.config, progress=False).array
    with torch.inference_mode():
        expected = network(torch.from_numpy(VOLUME)[None, None])[0].numpy()
    inner = (slice(None), *(slice(1, -1),) * 3)
    np.testing.assert_allclose(prediction[inner], expected[inner], atol=1e-5)


def predict(files, *options):
    words = ["predict", str(files / "volume.h5::raw"), "--checkpoint", str(files / "net.pt")]
    words += ["--architecture", "networks:Doubled", "--patch-size", "4,8,8", "--device", "cpu"]
    return main([*words, "--output", str(files / "out.h5"), *options])


def test_the_command_line_runs_with_what_was_found(files, found, capsys):
    options = ["--tune", "--tune-patches", "larger", "--tune-tolerance", "0.01", "--json"]
    assert predict(files, *options) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)

    assert found[0]["patches"] == "larger"
    assert found[0]["tolerance"] == 0.01
    assert facts["tuned"]["gain"] == 2
    assert facts["tuned"]["changed"]["batch_size"] == 4
    assert re.search("napari-seamless: 2.00 times as fast with batch_size 4", printed.err)
    with h5py.File(files / "out.h5") as file:
        config = json.loads(file["main"].attrs["config"])
    assert (config["batch_size"], config["overlap"]) == (4, [2, 4, 4])


def test_without_being_asked_nothing_is_tuned(files, found, capsys):
    assert predict(files, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert not found
    assert "tuned" not in facts
    assert set(facts["stages"]) == {"reading", "network", "blending", "writing"}
    assert facts["limited_by"] in facts["stages"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--tune-patches", "halo"], "tune-patches halo needs --tune: pass both"),
        (["--tune", "--workers", "2"], "tune measures one process, not workers"),
        (["--tune", "--tune-tolerance", "2"], "tolerance 2.0 and seconds 20.0 are not usable"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(files, options, line, capsys):
    assert predict(files, *options) == 2
    (said,) = [each for each in capsys.readouterr().err.splitlines() if "error: " in each]
    assert line in said
    assert not (files / "out.h5").exists()


def test_a_network_that_is_not_for_a_halo_is_one_line(files, capsys):
    class Normed(torch.nn.Module):
        def forward(self, image):
            return image - image.mean()

    with pytest.raises(ModelError, match="depends on all of its input"):
        ns.tune(VOLUME, Normed(), CONFIG, patches="halo")
