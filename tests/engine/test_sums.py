import os
import shutil
import signal

import numpy as np
import pytest
import torch

from napari_seamless.engine.errors import WriteError
from napari_seamless.engine.sums import OpenSums

resource = pytest.importorskip("resource")

SHAPE = (2, 3, 4, 5)
ONE = 8 * 2 * 3 * 4 * 5
"""Bytes of one chunk's sums."""


def opened(budget, place=None, next_use=lambda index: index) -> OpenSums:
    return OpenSums(budget, next_use, place)


def files_in(place) -> list[str]:
    return sorted(name for _, _, names in os.walk(place) for name in names)


def value_of(index: int) -> np.ndarray:
    return np.random.default_rng(index).normal(size=SHAPE)


@pytest.mark.parametrize("budget", [None, 0, ONE, 3 * ONE, 10 * ONE])
@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_sums_are_kept_wherever_they_are_and_the_budget_at_every_moment(tmp_path, budget, seed):
    """Pairs of neighbours are taken and added to, in raster or any other order."""
    sums, pairs = opened(budget, tmp_path), [(i, i + 1) for i in range(9)] * 3
    if seed is not None:
        pairs = [pairs[i] for i in np.random.default_rng(seed).permutation(len(pairs))]
    expected = {index: np.zeros(SHAPE) for index in range(10)}
    limit = np.inf if budget is None else max(budget, 2 * ONE)  # what is needed at once stays
    for pair in pairs:
        taken = sums.take(dict.fromkeys(pair, SHAPE))
        assert list(taken) == list(pair)
        for index, tensor in taken.items():
            assert tensor.dtype == torch.float64
            tensor.add_(torch.from_numpy(value_of(index)))
            expected[index] += value_of(index)
        known = set(sums)
        assert sums.nbytes <= limit
        assert sums.nbytes + sums.bytes_on_disk == ONE * len(known)
        assert sum(os.path.getsize(path) for path in tmp_path.glob("*/*")) == sums.bytes_on_disk
        for index in known:
            found = sums.part(index, (slice(1, 2), slice(None), slice(1, 3), slice(None)))
            np.testing.assert_array_equal(found, expected[index][1:2, :, 1:3])
    assert known == set(range(10))
    for index in range(10):
        np.testing.assert_array_equal(sums.take({index: SHAPE})[index], expected[index])
        sums.drop(index)
        assert index not in sums
    assert (sums.nbytes, sums.bytes_on_disk, files_in(tmp_path)) == (0, 0, [])


def test_the_chunk_that_is_needed_last_goes_first(tmp_path):
    needed = {0: 5, 1: 90, 2: 7, 3: 60, 4: 1}
    sums = opened(3 * ONE, tmp_path, needed.__getitem__)
    for index in (0, 1, 2):
        sums.take({index: SHAPE})
    assert files_in(tmp_path) == []
    sums.take({3: SHAPE})
    assert files_in(tmp_path) == ["1"]
    sums.take({4: SHAPE})
    assert files_in(tmp_path) == ["1", "3"]
    sums.take({1: SHAPE, 0: SHAPE})  # 0 is in use now; 2 is needed later than 4
    assert files_in(tmp_path) == ["2", "3"]


def test_what_is_needed_at_once_stays_whatever_it_takes(tmp_path):
    sums = opened(0, tmp_path)
    taken = sums.take(dict.fromkeys(range(5), SHAPE))
    assert sums.nbytes == 5 * ONE
    for index, tensor in taken.items():
        tensor.fill_(index)
    sums.take({9: SHAPE})
    assert (sums.nbytes, files_in(tmp_path)) == (ONE, ["0", "1", "2", "3", "4"])
    for index in range(5):
        assert (sums.part(index, (slice(None),) * 4) == index).all()


def test_a_part_is_a_copy(tmp_path):
    sums = opened(None, tmp_path)
    taken = sums.take({0: SHAPE})[0]
    part = sums.part(0, (slice(None),) * 4)
    taken.fill_(7)
    assert not part.any()


def test_files_are_gone_when_they_are_closed_or_forgotten(tmp_path):
    sums = opened(0, tmp_path)
    for _ in range(2):  # closed sums may be opened again
        for index in range(3):
            sums.take({index: SHAPE})
        assert files_in(tmp_path) == ["0", "1"]
        sums.close()
        assert (os.listdir(tmp_path), list(sums), sums.nbytes) == ([], [], 0)
    sums.take({0: SHAPE})
    sums.take({1: SHAPE})
    assert files_in(tmp_path) == ["0"]
    del sums
    assert os.listdir(tmp_path) == []


def test_sums_whose_file_is_gone_are_an_error_and_no_endless_loop(tmp_path):
    sums = opened(0, tmp_path)
    sums.take({0: SHAPE})
    sums.take({1: SHAPE})
    shutil.rmtree(next(tmp_path.iterdir()))
    with pytest.raises(FileNotFoundError):
        sums.take({0: SHAPE})
    with pytest.raises(KeyError):
        sums.part(7, (slice(None),) * 4)


def test_without_a_budget_no_folder_is_made(tmp_path):
    sums = opened(None, tmp_path)
    sums.take(dict.fromkeys(range(20), SHAPE))
    assert os.listdir(tmp_path) == []


@pytest.fixture
def small_files():
    """No file may be larger than one chunk and a half, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (ONE * 3 // 2, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_is_one_line_and_nothing_is_lost(tmp_path, small_files):
    sums = opened(0, tmp_path)
    large = (2, *SHAPE[1:3], 2 * SHAPE[3])
    sums.take({0: SHAPE})[0].fill_(3)
    sums.take({1: large})[1].fill_(4)  # the first chunk fits the disk
    with pytest.raises(WriteError, match=f"open sums of {2 * ONE:,} bytes do not fit") as caught:
        sums.take({2: SHAPE})
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path) in message
    assert all(word in message for word in ("free", "memory budget", "TMPDIR"))
    assert files_in(tmp_path) == ["0"]
    assert set(sums) == {0, 1}
    assert (sums.part(0, (slice(None),) * 4) == 3).all()
    assert (sums.part(1, (slice(None),) * 4) == 4).all()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_disk_that_takes_nothing_is_noticed_however_small_the_chunk(tmp_path):
    """What fits a buffer is written only when the file is closed."""
    sums = opened(0, tmp_path)
    sums.take({0: SHAPE})
    sums.take({1: SHAPE})
    (folder,) = tmp_path.iterdir()
    (folder / "1").symlink_to("/dev/full")
    with pytest.raises(WriteError, match="No space left"):
        sums.take({2: SHAPE})
    assert set(sums) == {0, 1}


def test_a_file_that_was_cut_short_is_an_error_and_no_endless_loop(tmp_path):
    sums = opened(0, tmp_path)
    sums.take({0: SHAPE})
    sums.take({1: SHAPE})
    (path,) = tmp_path.glob("*/0")
    os.truncate(path, ONE - 8)
    with pytest.raises(OSError, match="ends 8 bytes too early"):
        sums.take({0: SHAPE})


def test_what_is_in_files_can_be_read_when_another_deletes_them(tmp_path):
    """A run that goes on with a cancelled one removes its sums; its layer still shows them."""
    sums = opened(0, tmp_path)
    for index in range(3):
        sums.take({index: SHAPE})[index].add_(torch.from_numpy(value_of(index)))
    sums.take({3: SHAPE})
    assert sums.bytes_on_disk == 3 * ONE
    (folder,) = tmp_path.iterdir()
    shutil.rmtree(folder)
    for index in range(3):
        found = sums.part(index, (slice(1, 2), slice(0, 2), slice(None), slice(1, 4)))
        np.testing.assert_array_equal(found, value_of(index)[1:2, :2, :, 1:4])
    sums.close()
