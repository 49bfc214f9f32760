"""Copies of weights are the weights to the bit, in memory or on disk."""

import copy
import errno
import tempfile

import pytest
import torch

import mechmem as mm
from mechmem.weights import stored_copy
from mechmem.weights.masked_weights import MaskedWeights
from mechmem.weights.stored_copy import copied

TENSORS = [
    torch.tensor([[0.0, -0.0, float("nan")], [1e-45, 2.0, float("inf")]]).t(),
    torch.randn(5, generator=torch.Generator().manual_seed(0)).bfloat16(),
    torch.tensor(3.0, dtype=torch.float64),
]


def bits(tensors) -> list[bytes]:
    return [tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() for tensor in tensors]


@pytest.mark.parametrize("large", [0, 2**26])
def test_a_copy_is_the_tensors_to_the_bit_again_and_again(large, monkeypatch):
    monkeypatch.setattr(stored_copy, "LARGE", large)
    tensors = [tensor.clone() for tensor in TENSORS]
    kept = copied(tensors)
    assert isinstance(kept, list) == bool(large)
    for tensor in tensors:
        tensor.fill_(7.0)
    for _ in range(2):
        assert bits(kept) == bits(TENSORS)
        assert [(t.shape, t.dtype) for t in kept] == [(t.shape, t.dtype) for t in TENSORS]


def test_without_room_on_the_disk_it_stays_in_memory(monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(stored_copy, "LARGE", 0)
    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    kept = copied(TENSORS)
    assert isinstance(kept, list) and bits(kept) == bits(TENSORS)


def test_weights_go_back_to_the_bit_from_the_disk(tiny_model, tiny_paragraphs, monkeypatch):
    monkeypatch.setattr(stored_copy, "LARGE", 0)
    model = copy.deepcopy(tiny_model)
    weights = MaskedWeights(model, None, mm.Training(learning_rate=0.1))
    before = weights.snapshot()
    weights.accumulate(tiny_paragraphs.tokens, 13, lambda logits, _: logits.sum())
    weights.step()
    moved = [name for name, new in model.state_dict().items() if not torch.equal(new, tiny_model.state_dict()[name])]
    assert moved
    weights.restore(before)
    assert bits(model.state_dict().values()) == bits(tiny_model.state_dict().values())


@pytest.mark.filterwarnings("ignore:the edit removed nothing")
def test_an_edit_that_goes_back_is_the_same_from_memory_and_from_the_disk(
    tiny_model, tiny_paragraphs, tmp_path, monkeypatch
):
    def edited(large: int, name: str):
        monkeypatch.setattr(stored_copy, "LARGE", large)
        training = mm.Training(learning_rate=3e-3, steps=6, batch_size=4, checkpoint=tmp_path / name)
        stop = mm.Stop(keep_kl=1e-4)
        return mm.unlearn(
            tiny_model, tiny_paragraphs[:4], tiny_paragraphs[4:], stop=stop, training=training, check_targets=False
        )

    (one, history), (other, again) = edited(2**26, "a"), edited(0, "b")
    assert history.attrs["ended"] == "budget" == again.attrs["ended"]
    assert bits(one.state_dict().values()) == bits(other.state_dict().values())
