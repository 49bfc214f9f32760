"""Each answer of the hub, and each state of its cache, has a sentence of its own; the hub is a server on loopback."""

import errno
from collections.abc import Callable, Iterator
from typing import Any

import huggingface_hub
import pytest

from mechmem.data.errors import InputError
from mechmem.model.hub import find_folder
from tests.model.served_hub import BAD_TOKEN, NAME, Hub


@pytest.fixture
def hub(monkeypatch, tmp_path) -> Iterator[Hub]:
    """A hub with one whole model, an empty cache, and a folder without models to work in."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = Hub({"config.json": b"{}", "model.safetensors": b"x" * 100, "pytorch_model.bin": b"never fetched"})
    template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
    for name, value in (
        ("HUGGINGFACE_CO_URL_TEMPLATE", template.replace(huggingface_hub.constants.ENDPOINT, found.url)),
        ("ENDPOINT", found.url),
    ):
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None, raising=False)
    yield found
    found.server.shutdown()
    found.server.server_close()


def refused(sentence: str | None, name: str = NAME) -> None:
    with pytest.raises(InputError, match=sentence) as caught:
        find_folder(name)
    assert "pickle" not in str(caught.value) or sentence and "pickle" in sentence


def test_a_model_is_fetched_once_without_its_pickles(hub):
    folder = find_folder(NAME)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == b"x" * 100
    hub.server.shutdown()
    hub.server.server_close()
    assert find_folder(NAME) == folder, "a whole cache is enough without a network"


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        (401, "RepoNotFound", r"the hub has no model 'someone/model', .*check the spelling, or, if .* private, log in"),
        (401, BAD_TOKEN, r"does not accept the access token \(401\); log in with `hf auth login`"),
        (401, "GatedRepo", r"'someone/model' is gated: .*ask for access at http://.*/someone/model, then log in"),
        (403, "GatedRepo", r"'someone/model' is gated: .*ask for access at http://.*/someone/model, then log in"),
        (403, "", r"this account or token may not read it \(403\)"),
        (404, "RepoNotFound", r"the hub has no model 'someone/model', and there is no folder of this name; .*spelling"),
        (429, "", r"got too many requests from here \(429\); wait some minutes, or log in"),
        (500, "", r"it fails itself \(500\); try again later"),
        (503, "", r"it fails itself \(503\); try again later"),
        (418, "", r"it answered 418; try again later, or give a folder"),
    ],
)
def test_each_answer_of_the_hub_has_its_sentence(status, code, sentence, hub):
    hub.status, hub.code = status, code
    refused(sentence)


def test_a_file_that_is_listed_and_not_there_is_said(hub):
    hub.lost = "model.safetensors"
    refused(r"a file that it lists is not there \(404\); the model is being changed, try again later")


def test_a_whole_cache_is_used_while_the_hub_refuses(hub):
    folder = find_folder(NAME)
    for status in (401, 403, 429, 500):
        hub.status = status
        assert find_folder(NAME) == folder


def test_half_a_cache_is_said_to_be_half(hub, monkeypatch):
    hub.lost = "model.safetensors"
    with pytest.raises(InputError):
        find_folder(NAME)
    hub.status, hub.lost = 500, ""
    refused(r"the hub does not give 'someone/model', and .* holds only part of it: it fails itself \(500\)")
    hub.server.shutdown()
    hub.server.server_close()
    refused(r"the local cache, .*cache, holds only part of it, and the hub cannot be reached \(ConnectError: .*\)")
    # A cache that an older client wrote does not say what it should hold.
    monkeypatch.setattr("huggingface_hub._snapshot_download.read_tree_cache", lambda *_: None)
    refused(r"cache holds only part of 'someone/model' \(weights in safetensors is missing in .*connect to the network")


def test_no_cache_and_no_network_is_said(hub):
    hub.server.shutdown()
    hub.server.server_close()
    refused(
        r"'someone/model' is not a folder, the local cache, .*, does not have it, and the hub cannot be reached \(Co"
    )


@pytest.mark.usefixtures("hub")
def test_a_hub_that_does_not_answer_is_said(monkeypatch):
    import httpx2

    def late(*_: Any, **__: Any) -> None:
        raise httpx2.ReadTimeout("timed out")

    monkeypatch.setattr("huggingface_hub.hf_api.HfApi.repo_info", late)
    refused(r"the hub cannot be reached \(ReadTimeout: timed out\); connect to the network")


def test_a_model_without_safetensors_is_said(hub):
    del hub.files["model.safetensors"]
    refused(r"the hub's 'someone/model' has no weights in safetensors; .*pickles")
    hub.files.pop("config.json")
    refused(r"the hub's 'someone/model' has no (config\.json|weights in safetensors); .*pickles")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), r"the disk of the hub's cache, .*cache, is full; make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), r"the disk of the hub's cache, .*cache, is full; make room"),
        (PermissionError(errno.EACCES, "Permission denied"), r"cache, .*cache, cannot be written .*set HF_HOME"),
        (OSError(errno.EROFS, "Read-only file system"), r"cache, .*cache, cannot be written .*set HF_HOME"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_a_cache_that_cannot_be_written_is_said(error, sentence, monkeypatch):
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.file_download.http_get", fail)
    refused(sentence)


@pytest.mark.parametrize(
    "name", ["two words", "a/b/", "-a", "a..b", "a/b\0", "x" * 300, "owner/" + "y" * 200, "a\nb", "a/\ud800"]
)
def test_names_that_are_none_are_refused(name, hub):
    refused(None, name)
    assert hub.asked <= 2


@pytest.mark.usefixtures("hub")
def test_other_errors_keep_their_traceback(monkeypatch):
    def fail(*_: Any, **__: Any) -> Callable[..., Any]:
        raise ZeroDivisionError

    monkeypatch.setattr("mechmem.model.hub.snapshot_download", fail)
    with pytest.raises(ZeroDivisionError):
        find_folder(NAME)
