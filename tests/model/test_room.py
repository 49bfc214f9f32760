"""A model that does not fit in memory is refused before it is built."""

import psutil
import pytest

import mechmem.model.load as load_module
from mechmem.data.errors import InputError
from mechmem.model.load import load_model

pytestmark = pytest.mark.filterwarnings("ignore:.* has no tokenizer:UserWarning")


@pytest.mark.parametrize("family", ["gpt_neo", "gpt_neox", "gpt2"])
def test_a_model_must_fit_in_what_is_free(family, write_checkpoint, monkeypatch):
    folder, _ = write_checkpoint(family)
    model = load_model(folder)
    # Biases that the family does not have, the unembedding's among them, are made up and small.
    count = sum(parameter.numel() for parameter in model.parameters())
    swap, memory = psutil.swap_memory(), psutil.virtual_memory()
    monkeypatch.setattr(psutil, "swap_memory", lambda: swap._replace(free=0))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=4 * count))
    load_model(folder)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=int(3.5 * count)))
    monkeypatch.setattr(load_module, "empty_model", lambda *_: pytest.fail("it was built"))
    with pytest.raises(
        InputError, match=r"the model has .* weights, which take .* GB as torch\.float32, and .* is free"
    ):
        load_model(folder, device="cpu")
