"""Runs on several processes: the same numbers, each patch once, whatever dies."""

import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

pytest.importorskip("distributed")

from distributed import Client, LocalCluster

from cluster_networks import (
    Counting,
    Deadly,
    Failing,
    Fatal,
    Flat,
    Heads,
    Slow,
    Valid,
    files_under,
)
from napari_seamless.cluster import ClusterRun, connect, connection, local_cluster
from napari_seamless.cluster.connection import check_workers, quiet
from napari_seamless.cluster.travel import Network, Reopened
from napari_seamless.engine.box import Box
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.engine.errors import (
    ConfigError,
    ModelCallError,
    ModelError,
    PredictionError,
    SourceError,
)
from napari_seamless.engine.source import ArraySource
from napari_seamless.inference import InferenceRun
from napari_seamless.io.sources import open_source
from napari_seamless.models import LoadedModel, load_model
from outputs import facts_of

SHAPE = (24, 40, 72)
WITHIN = {"rtol": 1e-6, "atol": 1e-6}


@pytest.fixture(scope="module")
def cluster():
    with quiet(), local_cluster(2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def client(cluster):
    with Client(cluster, set_as_default=False) as client:
        yield client


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(0).integers(0, 255, SHAPE, dtype=np.uint8)


def scale(cluster, workers) -> None:
    """Wait also for those that go: what they are given in the meantime runs twice."""
    cluster.scale(workers)
    deadline = time.monotonic() + 60
    while len(cluster.scheduler.workers) != workers:
        assert time.monotonic() < deadline, f"there are {len(cluster.scheduler.workers)} workers"
        time.sleep(0.05)


def settings(**others) -> InferenceConfig:
    given = {"patch_size": (8, 16, 16), "overlap": 0.5, "batch_size": 3, "device": "cpu"}
    return InferenceConfig(**(given | others))


def drained(run):
    with run:
        events = list(run)
        return (
            events,
            run.status,
            [np.array(run.outputs(i)["main"]) for i in range(len(run.volumes))],
        )


def plain(volume, network, config, tmp_path, **others):
    run = InferenceRun(volume, network, config, tmp_path / "plain.zarr", **others)
    return drained(run)[2]


def files_of(output: Path) -> dict[str, bytes]:
    files = [output] if output.is_file() else [each for each in output.rglob("*") if each.is_file()]
    return {str(each.relative_to(output)): each.read_bytes() for each in files}


def folder(tmp_path, name) -> Path:
    (tmp_path / name).mkdir()
    return tmp_path / name


@pytest.mark.parametrize(
    "suffix",
    [
        ".h5",
        pytest.param(".tif", marks=pytest.mark.slow),
        pytest.param(".zarr", marks=pytest.mark.slow),
    ],
)
def test_any_number_of_workers_writes_the_same_bytes(cluster, client, volume, tmp_path, suffix):
    expected = plain(volume, Counting(), settings(), tmp_path)[0]
    written = {}
    try:
        for workers in (1, 2, 4) if suffix == ".zarr" else (2, 1):
            scale(cluster, workers)
            output = folder(tmp_path, str(workers)) / f"out{suffix}"
            network = Counting(tmp_path / f"log{workers}")
            run = ClusterRun(volume, network, settings(), output, client)
            events, status, (got,) = drained(run)
            assert status == "complete"
            assert events[-1].done == events[-1].total == len(run.plan.volumes[0].grid)
            assert network.patches == run.total  # each patch once
            np.testing.assert_allclose(got, expected, **WITHIN)
            assert not output.with_name(f"out{suffix}.run").exists()
            written[workers] = files_of(output)
    finally:
        scale(cluster, 2)
    first, *others = written.values()
    assert all(each == first for each in others)


def test_several_heads_and_labels_are_those_of_one_process(client, volume, tmp_path):
    config = settings(head="affinity", labelling="argmax", activation="sigmoid", blend_logits=True)
    run = InferenceRun(volume, Heads(channels=4), config, tmp_path / "plain.zarr")
    with run:
        list(run)
        expected = {name: np.array(each) for name, each in run.outputs().items()}
    with ClusterRun(volume, Heads(channels=4), config, tmp_path / "out.h5", client) as run:
        list(run)
        got = {name: np.array(each) for name, each in run.outputs().items()}
    assert set(got) == set(expected) == {"main", "labels", "heads/mask"}
    for name in ("main", "heads/mask"):
        np.testing.assert_allclose(got[name], expected[name], **WITHIN)
    assert (got["labels"] == expected["labels"]).mean() > 0.9999  # of equal values either may win
    with h5py.File(tmp_path / "out.h5") as file:
        np.testing.assert_array_equal(file["main"], got["main"])


def test_a_flat_image_and_a_flat_network(client, tmp_path):
    image = np.random.default_rng(1).random((90, 120), dtype=np.float32)
    config = settings(patch_size=(1, 16, 16))
    expected = plain(image, Flat(), config, tmp_path)[0]
    run = ClusterRun(image, Flat(), config, tmp_path / "out.zarr", client)
    np.testing.assert_allclose(drained(run)[2][0], expected, **WITHIN)


def test_output_scale_halo_region_and_valid_convolutions(client, volume, tmp_path):
    config = settings(halo=(2, 2, 2), region=((2, 24), (5, 40), (3, 60)), normalization="zscore")
    expected = plain(volume, Valid(), config, tmp_path)[0]
    run = ClusterRun(volume, Valid(), config, tmp_path / "out.zarr", client)
    np.testing.assert_allclose(drained(run)[2][0], expected, **WITHIN)


def test_skipped_patches_are_not_run_and_are_filled(client, volume, tmp_path):
    mask = np.zeros(SHAPE, dtype=bool)
    mask[4:9, 3:20, 30:50] = True
    config = settings(fill_value=0.25)
    network = Counting(tmp_path / "log")
    expected = plain(volume, Counting(), config, tmp_path, mask=mask)[0]
    run = ClusterRun(volume, network, config, tmp_path / "out.zarr", client, mask=mask)
    events, status, (got,) = drained(run)
    assert status == "complete"
    assert events[-1].done == run.total
    np.testing.assert_allclose(got, expected, **WITHIN)
    assert (got[:, -1] == 0.25).all()
    wanted = run.total - run.volumes[0].skipped_count
    assert wanted < run.total / 3
    assert network.patches == wanted


def test_what_cannot_be_read_is_nan_and_named(client, volume, tmp_path):
    bad = volume / np.float32(255)
    bad[12, 20, 36] = np.nan
    np.save(tmp_path / "bad.npy", bad)
    config = settings(on_error="continue", normalization="none")
    with InferenceRun(
        str(tmp_path / "bad.npy"), Counting(), config, tmp_path / "plain.zarr"
    ) as run:
        list(run)
        expected, failed = np.array(run.outputs()["main"]), run.metadata()["failed"]
    run = ClusterRun(str(tmp_path / "bad.npy"), Counting(), config, tmp_path / "out.zarr", client)
    got = drained(run)[2][0]
    assert np.isnan(got).any()
    np.testing.assert_allclose(got, expected, **WITHIN)
    assert run.metadata()["failed"] == failed
    assert run.status == facts_of(tmp_path / "out.zarr")["status"] == "partial"
    assert tmp_path.joinpath("out.zarr.run").exists()  # a run that resumes tries them again
    with pytest.raises(SourceError, match=r"bad\.npy holds nan"):
        drained(
            ClusterRun(
                str(tmp_path / "bad.npy"),
                Counting(),
                settings(normalization="none"),
                tmp_path / "no.zarr",
                client,
            )
        )


def test_workers_close_what_they_opened_when_a_job_ends(client, volume, tmp_path):
    np.save(tmp_path / "in.npy", volume)
    source = str(tmp_path / "in.npy")
    with ClusterRun(source, Counting(), settings(), tmp_path / "out.h5", client) as run:
        for event in run:
            if event.done > 100:
                break
        assert any(client.run(files_under, tmp_path).values())
    assert set(map(tuple, client.run(files_under, tmp_path).values())) == {()}


def test_a_worker_that_lost_its_first_blocks_leaves_nothing_that_claims_to_run(
    client, volume, tmp_path
):
    network = Failing(tmp_path / "log")
    (tmp_path / "log").write_bytes(b"." * 97)  # the first batch is well
    run = ClusterRun(volume, network, settings(), tmp_path / "out.zarr", client)
    with run, pytest.raises(PredictionError, match="the cat sat on it"):
        list(run)
    assert run.done == 0
    assert facts_of(tmp_path / "out.zarr")["status"] == "failed"


def test_a_series_goes_to_one_output(client, tmp_path):
    series = np.random.default_rng(2).random((2, 1, 12, 24, 40), dtype=np.float32)
    expected = plain(series, Counting(), settings(), tmp_path)
    run = ClusterRun(series, Counting(), settings(), tmp_path / "out.zarr", client)
    _, status, got = drained(run)
    assert status == "complete"
    assert len(got) == 2
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, other, **WITHIN)
    assert not (tmp_path / "out.zarr.run").exists()


def test_a_worker_that_dies_is_replaced_and_nothing_is_lost_or_added_twice(
    client, volume, tmp_path
):
    expected = plain(volume, Counting(), settings(), tmp_path)[0]
    network = Fatal(tmp_path / "log")
    run = ClusterRun(volume, network, settings(), tmp_path / "out.zarr", client)
    _, status, (got,) = drained(run)
    assert (tmp_path / "log.killed").exists()
    assert status == "complete"
    np.testing.assert_allclose(got, expected, **WITHIN)
    assert network.patches >= run.total  # those that its block had done, again


@pytest.mark.slow
def test_a_network_that_kills_every_worker_ends_the_run(client, volume, tmp_path):
    run = ClusterRun(volume, Deadly(tmp_path / "log"), settings(), tmp_path / "out.zarr", client)
    with run, pytest.raises(PredictionError, match="several workers died at the same task"):
        list(run)
    assert run.status == "failed"


def test_an_error_of_the_network_arrives_as_one_line(client, volume, tmp_path):
    run = ClusterRun(volume, Failing(tmp_path / "log"), settings(), tmp_path / "out.zarr", client)
    with run, pytest.raises(PredictionError, match="the cat sat on it") as caught:
        list(run)
    assert "\n" not in str(caught.value)
    assert run.status == "failed"
    (tmp_path / "log").write_bytes(b"." * 100)
    run = ClusterRun(volume, Failing(tmp_path / "log"), settings(), tmp_path / "2.zarr", client)
    with run, pytest.raises(ModelCallError, match="the cat sat on it"):
        list(run)


def test_a_cancelled_run_is_resumed(client, volume, tmp_path):
    expected = plain(volume, Counting(), settings(), tmp_path)[0]
    output = tmp_path / "out.h5"
    network = Slow(tmp_path / "log")
    with ClusterRun(volume, network, settings(), output, client) as run:
        for event in run:
            if event.done > 100:
                run.cancel()
        done = event.done
        assert run.status == "partial"
        assert done < run.total
        live = run.live[0][0:1]
        covered = ~np.isnan(live)
        np.testing.assert_allclose(live[covered], expected[covered], **WITHIN)
    before = network.patches
    time.sleep(0.5)
    assert network.patches == before  # nobody is at work any more
    assert not list(tmp_path.glob("out.h5.run/blocks-0/job-*"))
    again = ClusterRun(volume, network, settings(), output, client, resume=True)
    _, status, (got,) = drained(again)
    assert status == "complete"
    np.testing.assert_allclose(got, expected, **WITHIN)
    # the blocks that were done are not run again, but for the first batch
    assert network.patches - before <= again.total - done + 3
    assert not output.with_name("out.h5.run").exists()
    # a run that is complete has nothing left to do
    _, status, (same,) = drained(
        ClusterRun(volume, network, settings(), output, client, resume=True)
    )
    assert status == "complete"
    np.testing.assert_array_equal(same, got)
    assert not output.with_name("out.h5.run").exists()


def test_one_process_goes_on_with_what_a_cluster_left(client, volume, tmp_path):
    expected = plain(volume, Counting(), settings(), tmp_path)[0]
    with ClusterRun(volume, Slow(), settings(), tmp_path / "out.zarr", client) as run:
        for event in run:
            if event.done > 300:
                run.cancel()
    run = InferenceRun(volume, Slow(), settings(), tmp_path / "out.zarr", resume=True)
    np.testing.assert_allclose(drained(run)[2][0], expected, **WITHIN)


DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
import numpy as np
from pathlib import Path
from cluster_networks import Slow
from napari_seamless.engine.config import InferenceConfig
from napari_seamless.cluster import ClusterRun

if __name__ == "__main__":
    place = Path(sys.argv[2])
    config = InferenceConfig(patch_size=(8, 16, 16), overlap=0.5, batch_size=3, device="cpu")
    network = Slow(place / "log")
    with ClusterRun(str(place / "in.npy"), network, config, place / "out.h5", 2) as run:
        for event in run:
            pass
"""


@pytest.mark.slow
def test_a_driver_that_is_killed_takes_its_workers_along_and_is_resumed(client, volume, tmp_path):
    np.save(tmp_path / "in.npy", volume)
    (tmp_path / "driver.py").write_text(DRIVER)
    network = Slow(tmp_path / "log")
    expected = plain(volume, Counting(), settings(), tmp_path)[0]
    driver = subprocess.Popen(
        [sys.executable, tmp_path / "driver.py", Path(__file__).parent, tmp_path]
    )
    try:
        until = time.monotonic() + 120
        done = tmp_path / "out.h5.run" / "blocks-0" / "done"
        while not list(done.glob("[0-9]*.json")) and time.monotonic() < until:
            time.sleep(0.01)
    finally:
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
    time.sleep(1)
    before = network.patches
    time.sleep(1)
    assert network.patches == before
    recorded = len(list(done.glob("[0-9]*.json")))
    assert recorded >= 1
    run = ClusterRun(
        str(tmp_path / "in.npy"), network, settings(), tmp_path / "out.h5", client, resume=True
    )
    _, status, (got,) = drained(run)
    assert status == "complete"
    np.testing.assert_allclose(got, expected, **WITHIN)
    assert network.patches - before < run.total  # not all again


def test_the_live_view_shows_finished_chunks_and_nothing_else(client, volume, tmp_path):
    expected = plain(volume, Counting(), settings(), tmp_path)[0]
    with ClusterRun(volume, Counting(), settings(), tmp_path / "out.zarr", client) as run:
        live, seen = run.live[0], 0
        for _ in run:
            shown = np.asarray(live)
            covered = ~np.isnan(shown)
            np.testing.assert_allclose(shown[covered], expected[covered], **WITHIN)
            assert covered.sum() >= seen
            seen = covered.sum()
        assert seen == expected.size


def test_blocks_that_are_looked_at_come_first(client, volume, tmp_path):
    with ClusterRun(volume, Slow(), settings(), tmp_path / "out.zarr", client) as run:
        order = []
        original = run._event

        def note(vol_id, blocks, result):
            if not isinstance(result, int):
                order.append(blocks.reach(result.block))
            return original(vol_id, blocks, result)

        run._event = note
        assert run.live
        far = Box((22, 38, 70), (24, 40, 72))
        run.focus(far)
        list(run)
    last = max(range(len(order)), key=lambda at: order[at].stop)
    assert last < len(order) - 1
    assert not order[last].intersection(far).is_empty


def test_a_paused_run_hands_nothing_out(client, volume, tmp_path):
    network = Slow(tmp_path / "log")
    with ClusterRun(volume, network, settings(), tmp_path / "out.zarr", client) as run:
        run.pause()
        events = []
        thread = threading.Thread(target=lambda: events.extend(run))
        thread.start()
        time.sleep(0.5)
        assert network.patches == 0
        run.resume()
        thread.join(60)
        assert run.status == "complete"


# ------------------------------------------------------------------------------------ connections


def test_without_an_output_there_is_a_remedy(volume):
    with pytest.raises(ConfigError, match=r"need an output to write to, such as out\.zarr"):
        ClusterRun(volume, Counting(), settings(), None, 2)


def test_no_worker_is_refused(volume, tmp_path):
    with pytest.raises(ConfigError, match="workers 0 cannot run anything; give 1 or more"):
        ClusterRun(volume, Counting(), settings(), tmp_path / "out.zarr", 0)
    assert not (tmp_path / "out.zarr").exists()


@pytest.mark.slow
def test_workers_of_its_own_are_started_and_ended(volume, tmp_path):
    import psutil

    before = {each.pid for each in psutil.Process().children(recursive=True)}
    level = logging.getLogger("distributed").level
    with ClusterRun(volume, Counting(), settings(), tmp_path / "out.zarr", 1) as run:
        assert len(list(run)) > 1
        assert run.status == "complete"
    left = {each.pid for each in psutil.Process().children(recursive=True)} - before
    assert not {pid for pid in left if "spawn_main" in " ".join(psutil.Process(pid).cmdline())}
    assert logging.getLogger("distributed").level == level


def test_a_scheduler_that_is_not_there_is_named(volume, tmp_path, monkeypatch):
    monkeypatch.setattr(connection, "SCHEDULER_SECONDS", 1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"no scheduler answers at '{address}'"):
            ClusterRun(volume, Counting(), settings(), tmp_path / "out.zarr", address)
    with quiet(), pytest.raises(ConfigError, match="scheduler 'nonsense://' is no address"):
        connect("nonsense://")


@pytest.fixture
def empty():
    with (
        quiet(),
        LocalCluster(
            n_workers=0,
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            silence_logs=logging.CRITICAL,
            host="127.0.0.1",
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client


def test_a_scheduler_without_workers_is_named(empty, monkeypatch):
    monkeypatch.setattr(connection, "WORKER_SECONDS", 1)
    with pytest.raises(ConfigError, match="has had no worker for 1 seconds"):
        check_workers(empty)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            "raise ImportError('nothing here')",
            r"worker tcp://127.+ has no napari-seamless .*"
            r"pip install napari-seamless\[cluster\]",
        ),
        ("__version__ = '0.0.1'", r"worker tcp://127.+ has napari-seamless 0\.0\.1, this process"),
    ],
)
def test_workers_without_the_package_or_with_another_one_are_named(empty, tmp_path, content, said):
    with worker_with(content, empty, tmp_path), pytest.raises(ConfigError, match=said):
        check_workers(empty)


@pytest.fixture
def ending(empty, tmp_path):
    """A worker that ends when it is asked for its version."""
    with worker_with("import os; os._exit(1)", empty, tmp_path):
        empty.wait_for_workers(1, timeout=60)
        yield


def test_a_worker_that_ends_while_it_is_asked_is_done_without(empty, ending):
    empty.cluster.scale(1)
    empty.wait_for_workers(2, timeout=60)
    check_workers(empty)


def test_workers_of_which_none_answers_are_named(empty, ending):
    with pytest.raises(ConfigError, match=r"no worker of .* answers, such as tcp://127.+closed"):
        check_workers(empty)


@contextmanager
def worker_with(content, client, folder_) -> Iterator[None]:
    package = folder(folder_, "napari_seamless")
    (package / "__init__.py").write_text(content)
    command = [sys.executable, "-m", "distributed.cli.dask_worker", client.scheduler.address]
    worker = subprocess.Popen(
        [*command, "--no-nanny", "--nthreads", "1", "--no-dashboard"],
        env={**os.environ, "PYTHONPATH": str(folder_)},
        cwd=folder_,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        worker.terminate()
        worker.wait()


# ---------------------------------------------------------------------------- what travels and how


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_networks_of_torchscript_travel_also_inside_of_others():
    inner = torch.jit.script(torch.nn.Sequential(torch.nn.Conv3d(1, 2, 1), torch.nn.ReLU()))
    outer = torch.nn.Sequential(inner, torch.nn.Sigmoid())
    batch = torch.rand(1, 1, 2, 3, 4)
    for network in (inner, outer):
        sent = pickle.loads(pickle.dumps(Network.of(network)))
        torch.testing.assert_close(sent.open()(batch), network(batch))


def test_a_network_that_cannot_travel_is_refused():
    network = Counting()
    network.lock = threading.Lock()
    with pytest.raises(ModelError, match="cannot be sent to other processes: cannot pickle"):
        Network.of(network)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_checkpoint_whose_network_cannot_travel_is_opened_by_each_worker(tmp_path):
    network, batch = Counting().eval(), torch.rand(1, 1, 4, 8, 8)
    torch.jit.save(torch.jit.trace(network, batch), tmp_path / "net.pt")
    loaded = load_model(tmp_path / "net.pt")
    stuck = torch.nn.Identity()
    stuck.lock = threading.Lock()
    sent = pickle.loads(pickle.dumps(Network.of(LoadedModel(stuck, loaded.report))))
    assert sent.content is None
    torch.testing.assert_close(sent.open()(batch), network(batch))
    (tmp_path / "net.pt").unlink()
    with pytest.raises(ModelError, match=rf"worker on {socket.gethostname()}: .*net\.pt"):
        sent.open()


def test_a_volume_that_a_worker_does_not_see_names_the_worker():
    with pytest.raises(SourceError, match=rf"worker on {socket.gethostname()}: no such file"):
        Reopened("/nowhere/in.npy", None).open()


def test_paths_travel_as_text_and_arrays_as_a_copy(tmp_path, volume, monkeypatch):
    np.save(tmp_path / "in.npy", volume)
    monkeypatch.chdir(tmp_path)
    with_path = Reopened.of(open_source("in.npy"), "in.npy", tmp_path / "copy.npy")
    assert with_path.source == str(tmp_path / "in.npy")
    assert not (tmp_path / "copy.npy").exists()
    url = "zarr://s3://bucket/thing.zarr::a/b"
    assert Reopened.of(ArraySource(volume), url, tmp_path / "copy.npy").source == url
    copied = Reopened.of(ArraySource(volume, "mine"), volume, tmp_path / "copy.npy").open()
    assert copied.name == "mine"
    np.testing.assert_array_equal(copied.read(Box.of_shape(SHAPE))[0], volume)


def test_dask_arrays_travel_as_they_are_unless_they_hold_the_voxels(tmp_path, volume):
    import dask.array

    lazy = dask.array.zeros((1000, 1000, 1000), dtype="uint8", chunks=100)
    sent = Reopened.of(ArraySource(lazy), lazy, tmp_path / "copy.npy")
    assert sent.source is lazy
    array = dask.array.from_array(np.zeros((30, 1000, 1000), np.uint8))
    sent = Reopened.of(ArraySource(array), array, tmp_path / "copy.npy")
    assert sent.source == str(tmp_path / "copy.npy")
