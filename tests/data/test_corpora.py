import json
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from mechmem.data.corpora import read_corpus
from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs

TEXTS = ["".join(f"{word} {number} of {number * 7 % 31}, " for number in range(120)) for word in ("alpha", "beta")]


@pytest.fixture(scope="module")
def tokenizer():
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(TEXTS, 300, show_progress=False)
    return PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer)


def jsonl(path: Path, records: list) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_jsonl_gives_windows_of_every_document_with_counts_and_sources(tmp_path, tokenizer):
    records = [{"text": text, "meta": {"pile_set_name": "Books"}} for text in (*TEXTS, TEXTS[0])]
    paragraphs = read_corpus(jsonl(tmp_path / "c.jsonl", records), tokenizer)
    expected = []
    for text in TEXTS:
        ids = tokenizer(text)["input_ids"]
        expected += [ids[start : start + 100] for start in range(0, len(ids) - 99, 100)]
    assert paragraphs.tokens.tolist() == expected
    assert set(paragraphs.column("source")) == {"Books"}
    half = sum(ids in expected for ids in expected[: len(expected) // 2])
    assert paragraphs.column("count").tolist()[:half] == [2] * half
    assert paragraphs.column("text")[0] == tokenizer.decode(expected[0])


def test_the_same_text_as_txt_and_parquet_gives_the_same_paragraphs(tmp_path, tokenizer):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "c.txt").write_text(TEXTS[0])
    pq.write_table(pa.table({"text": [TEXTS[0]]}), tmp_path / "c.parquet")
    rows = [read_corpus(tmp_path / name, tokenizer).tokens for name in ("c.txt", "c.parquet")]
    assert torch.equal(*rows)


def test_token_files_keep_their_columns_and_gain_the_missing_ones(tmp_path, tokenizer):
    rows = torch.randint(0, 200, (3, 100), generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "c.npy", rows.numpy())
    Paragraphs(rows, 50).with_columns(id=[7, 8, 9], cluster=[0, 0, 1]).save(tmp_path / "c.parquet")
    from_npy = read_corpus(tmp_path / "c.npy", None)
    assert from_npy.column("id").tolist() == [0, 1, 2] and from_npy.column("cluster").tolist() == [0, 1, 2]
    from_parquet = read_corpus(tmp_path / "c.parquet", tokenizer, limit=2)
    assert from_parquet.column("id").tolist() == [7, 8] and from_parquet.column("cluster").tolist() == [0, 0]


def test_bad_corpora_are_refused(tmp_path, tokenizer):
    with pytest.raises(InputError, match="none.jsonl: no such file"):
        read_corpus(tmp_path / "none.jsonl", tokenizer)
    (tmp_path / "c.doc").write_text("text")
    with pytest.raises(InputError, match="c.doc: wanted a corpus as .txt"):
        read_corpus(tmp_path / "c.doc", tokenizer)
    with pytest.raises(InputError, match="1 documents came and none has 100 tokens"):
        read_corpus(jsonl(tmp_path / "short.jsonl", [{"text": "short"}]), tokenizer)
    with pytest.raises(InputError, match="a record has fields .'body'.; wanted 'text'"):
        read_corpus(jsonl(tmp_path / "field.jsonl", [{"body": "x"}]), tokenizer)
    with pytest.raises(InputError, match="the model has no tokenizer; give token ids"):
        read_corpus(jsonl(tmp_path / "text.jsonl", [{"text": "x"}]), None)
    np.save(tmp_path / "empty.npy", np.zeros((0, 100), dtype=np.int32))
    with pytest.raises(InputError, match="holds no paragraph"):
        read_corpus(tmp_path / "empty.npy", None)
