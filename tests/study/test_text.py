"""Any text goes in and out of every file of a study unchanged, or as its visible escape."""

import html.parser
import json
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import tokenizers
import torch
import transformers
import xarray as xr

from mechmem.data.assets import MODEL_FOLDER
from mechmem.data.netcdf import load_netcdf, save_netcdf
from mechmem.data.paragraphs import Paragraphs
from mechmem.data.stored_json import read_object
from mechmem.report.page import Figure, Page, Section, Table, Verbatim, View, write_page
from mechmem.report.study_report import write_report
from mechmem.show.patterns.attention_picture import attention_picture
from mechmem.show.patterns.attention_side import Side
from mechmem.study.folder import open_study
from mechmem.study.runner import run_study
from mechmem.study.settings import StudySettings

SURROGATES = ["\ud800", "a\udfffb", "\udc80\0"]


def byte_tokenizer() -> Any:
    """GPT-2's: every byte is a token, and NUL one of them; without merges."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    made = tokenizers.Tokenizer(tokenizers.models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made)


def texts_of(name: str) -> list[str]:
    if name == "surrogates":
        return SURROGATES
    tokenizer: Any = byte_tokenizer() if name == "GPT-2" else transformers.AutoTokenizer.from_pretrained(MODEL_FOLDER)
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    ids = tokenizer.convert_tokens_to_ids(sorted(alphabet))
    assert len(set(ids)) == 256 and None not in ids
    texts = [tokenizer.decode([token]) for token in ids]
    assert "\0" in texts and "\r" in texts
    return [*texts, "".join(texts), "x\0"]


@pytest.fixture(params=["bundled", "GPT-2", "surrogates"])
def texts(request) -> list[str]:
    return texts_of(request.param)


def escaped(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def test_netcdf_gives_every_text_back(texts, tmp_path):
    token = xr.Variable(("pos",), np.array(texts, dtype=object), {"all": "".join(texts)}, fastpath=True)
    save_netcdf(xr.Dataset({"token": token}), tmp_path / "t.nc")
    read = load_netcdf(tmp_path / "t.nc")
    assert read.token.values.tolist() == texts and read.token.attrs["all"] == "".join(texts)


def test_parquet_gives_every_text_back_and_surrogates_as_escapes(texts, tmp_path):
    tokens = torch.arange(2 * len(texts)).reshape(-1, 2)
    for values in (texts, np.array(texts, dtype=object)):
        Paragraphs(tokens, 1).with_columns(text=values).save(tmp_path / "p.parquet")
        assert Paragraphs.load(tmp_path / "p.parquet").column("text").tolist() == [escaped(text) for text in texts]


def test_json_gives_every_text_back(texts, tmp_path):
    (tmp_path / "m.json").write_text(json.dumps({"findings": texts}))
    assert read_object(tmp_path / "m.json", advice="")["findings"] == texts


class Reader(html.parser.HTMLParser):
    """The text of a page's cells and listings, and the JSON in it, as a browser reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.text, self.json, self._script, self._data = "", [], False, False

    def handle_starttag(self, tag: str, attrs: list[Any]) -> None:
        self._script = tag == "script"
        self._data = self._script and dict(attrs).get("type") == "application/json"
        if self._data:
            self.json.append("")

    def handle_endtag(self, tag: str) -> None:
        self._script &= tag != "script"

    def handle_data(self, data: str) -> None:
        if not self._script:
            self.text += data
        elif self._data:
            self.json[-1] += data


def test_html_shows_every_text_and_its_scripts_hold_it(texts, tmp_path):
    shown = [f"<<{text}>>" for text in texts]
    table = Table("t", ["text"], [[text] for text in shown])
    view = attention_picture([[Side("p", [(0, 0)], texts, None, None, np.eye(len(texts))[None])]])
    figure = Figure(go.Figure(go.Bar(x=texts, y=list(range(len(texts))))), "how")
    blocks = [table, Verbatim("v", "".join(shown)), View("t", view, "c"), figure]
    section = Section("one", "t", "q", ["a"], blocks)
    path = write_page(tmp_path / "r.html", Page("t", "l", [], [], [section]))
    # A browser sees neither NUL nor a bare carriage return in the file.
    raw = path.read_bytes().decode()
    assert "\0" not in raw and "\r" not in raw
    reader = Reader()
    reader.feed(raw)
    for text in shown:
        assert escaped(text).replace("\0", "\\x00") in reader.text
    sides = [json.loads(part)["paragraphs"][0]["sides"][0] for part in reader.json if '"sides"' in part]
    assert [side["text"] for side in sides] == [texts]
    assert any(json.loads(part)["data"][0]["x"] == texts for part in reader.json if '"bar"' in part)


def test_a_study_of_every_byte_token_ends_with_a_report(tmp_path):
    """A random model is made to have memorized: prefixes hold every token, continuations are its own."""
    tokenizer = byte_tokenizer()
    config = transformers.GPTNeoConfig(
        vocab_size=257, max_position_embeddings=128, hidden_size=24, num_layers=2, num_heads=2, intermediate_size=48,
        attention_types=[[["global", "local"], 1]], initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    reference: Any = transformers.GPTNeoForCausalLM(config).eval()
    reference.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    prefix = torch.arange(400).reshape(8, 50) % 256
    own = reference.generate(
        prefix, attention_mask=torch.ones_like(prefix), max_new_tokens=50, do_sample=False, pad_token_id=0
    )
    np.save(tmp_path / "ids.npy", torch.cat([own, torch.randint(0, 256, (30, 100))]).numpy())
    settings = replace(
        StudySettings(), model=str(tmp_path / "model"), corpus=str(tmp_path / "ids.npy"), gradient_sample=8,
        ablation_sample=2,
    )  # fmt: skip
    run_study(tmp_path / "s", settings, until="attention")
    study = open_study(tmp_path / "s")
    seen = study.results["attention"].token.values.ravel().tolist()
    known = {tokenizer.decode([token]) for token in range(256)}
    assert set(seen) <= known and "\0" in {
        tokenizer.decode([token]) for token in study.paragraphs.tokens[:8].ravel().tolist()
    }
    assert study.paragraphs.column("prefix_text").tolist() == [
        tokenizer.decode(row) for row in study.paragraphs.prefix.tolist()
    ]
    assert write_report(tmp_path / "s").is_file()
