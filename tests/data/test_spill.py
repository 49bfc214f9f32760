import numpy as np
import pytest

from mechmem.data.errors import InputError
from mechmem.data.spill import Spill


@pytest.mark.parametrize(("buckets", "buffer"), [(1, 10), (8, 10), (64, 1), (256, 10**6)])
def test_every_pair_comes_back_once_with_its_equals_and_in_the_order_added(tmp_path, buckets, buffer):
    rng = np.random.default_rng(0)
    keys = rng.choice(rng.integers(0, 2**64, 30, dtype=np.uint64), 400)
    spill = Spill(tmp_path / "s", buckets=buckets, buffer=buffer)
    truth: dict[int, list[int]] = {}
    for value, key in enumerate(keys.tolist()):
        truth.setdefault(key, []).append(value)
    for part in np.split(np.arange(400), [7, 7, 150, 395]):
        spill.add(keys[part], part)
    for _ in range(2):  # reading leaves the pairs where they are
        found: dict[int, list[int]] = {}
        highest = -1
        for bucket_keys, values in spill.buckets():
            assert int(bucket_keys.min()) > highest and not set(bucket_keys.tolist()) & set(found)
            highest = int(bucket_keys.max())
            for key, value in zip(bucket_keys.tolist(), values.tolist(), strict=True):
                found.setdefault(key, []).append(value)
        assert found == truth


def test_few_pairs_touch_no_disk_and_none_give_no_bucket(tmp_path):
    spill = Spill(tmp_path / "s")
    assert list(spill.buckets()) == []
    spill.add(np.arange(5, dtype=np.uint64), np.arange(5))
    assert len(list(spill.buckets())) == 1 and not (tmp_path / "s").exists()


def test_memory_holds_the_buffer_and_the_disk_the_rest(tmp_path):
    spill = Spill(tmp_path / "s", buckets=4, buffer=100)
    for start in range(0, 1000, 50):
        spill.add(np.arange(start, start + 50, dtype=np.uint64) << np.uint64(54), np.arange(start, start + 50))
    assert sum(path.stat().st_size for path in (tmp_path / "s").iterdir()) == 1000 * 16
    assert [len(keys) for keys, _ in spill.buckets()] == [256, 256, 256, 232]


def test_buckets_that_bits_cannot_choose_are_refused(tmp_path):
    with pytest.raises(InputError, match="buckets is 100; need a power of two"):
        Spill(tmp_path, buckets=100)


def test_the_lowest_keys_come_first_whichever_were_added_first(tmp_path):
    spill = Spill(tmp_path / "s", buffer=1)
    for bucket in (200, 8, 16, 3):
        spill.add(np.array([bucket << 56], dtype=np.uint64), np.array([bucket]))
    assert [values.tolist() for _, values in spill.buckets()] == [[3], [8], [16], [200]]
