"""Every kind of input: its undamaged files, which of them is damaged and how, what reads it, how often it comes."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from tests.fuzzing import readers, samples
from tests.fuzzing.byte_mutations import mutate_bytes
from tests.fuzzing.format_mutations import (
    Mutation,
    compressed,
    mutate_npy,
    mutate_parquet,
    mutate_safetensors,
)
from tests.fuzzing.json_mutations import mutate_json
from tests.fuzzing.netcdf_mutations import mutate_netcdf
from tests.fuzzing.readers import Reader, checkpoint

# Keys that transformers acts on and our sample's config.json does not hold.
CONFIG_KEYS: tuple[tuple[str, Any], ...] = (
    ("num_hidden_layers", 10**6), ("num_labels", 10**9), ("n_layer", 10**12), ("attention_types", [[["local"], 10**9]]),
    ("attn_implementation", "flash_attention_2"), ("_attn_implementation", "a/b"), ("quantization_config", {"bits": 4}),
    ("auto_map", {"AutoConfig": "evil.Config"}), ("torch_dtype", "os.system"), ("rope_scaling", {"type": "linear"}),
    ("rope_parameters", {"rope_type": "yarn", "factor": 2}), ("id2label", {"0": []}), ("task_specific_params", []),
    ("tie_word_embeddings", "no"), ("is_encoder_decoder", True), ("pruned_heads", {"0": [1]}), ("name_or_path", "a/b"),
    ("model_type", ["gpt2"]), ("architectures", "x"), ("layer_norm_epsilon", -1), ("add_cross_attention", True),
    ("num_attention_heads", 0), ("hidden_size", 10**9), ("window_size", -5), ("transformers_version", {}),
)  # fmt: skip
TOKENIZER_KEYS: tuple[tuple[str, Any], ...] = (
    ("auto_map", {"AutoTokenizer": ["evil.T", None]}), ("tokenizer_class", "GPT2Tokenizer"), ("tokenizer_class", "X"),
    ("added_tokens_decoder", {"-1": {"content": "a"}}), ("chat_template", "{{ 1/0 }}"), ("extra_special_tokens", ["a"]),
    ("pad_token", {"__type": "AddedToken", "content": "z"}), ("model_max_length", -1), ("processor_class", "Y"),
    ("tokenizer_file", "/etc/passwd"), ("name_or_path", "a/b"), ("fix_mistral_regex", True), ("add_prefix_space", 7),
)  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        name: of the kind.
        files: makes the undamaged files.
        damaged: which of them is damaged, by the end of its name.
        mutations: how, each with equal odds.
        read: the reader, given the folder.
        weight: how often it comes, beside the others; cheap ones come often.
    """

    name: str
    files: Callable[[], Mapping[str, bytes]]
    damaged: str
    mutations: tuple[Mutation, ...]
    read: Reader
    weight: float = 1.0

    def candidates(self) -> list[str]:
        """The files that may be damaged."""
        # "/config.json" is not tokenizer_config.json.
        return [name for name in self.files() if f"/{name}".endswith(self.damaged)]


def of_json(*extra: tuple[str, Any]) -> Mutation:
    """JSON-aware damage, with keys of the format."""
    return lambda data, rng: mutate_json(data, rng, extra=extra)


def mutate_lines(data: bytes, rng: random.Random) -> bytes:
    """JSON-aware damage of some lines."""
    return b"\n".join(mutate_json(line, rng) if rng.random() < 0.5 else line for line in data.split(b"\n"))


def only(files: Callable[[], Mapping[str, bytes]], *names: str) -> Callable[[], Mapping[str, bytes]]:
    """Of some files those with these names."""
    return lambda: {name: data for name, data in files().items() if name in names}


texts, tables, tokenizer = cache(samples.texts), cache(samples.tables), cache(samples.tokenizer_files)
study, published, repeated = cache(samples.study), cache(samples.published_files), cache(samples.repeated_study)


@cache
def edits() -> dict[str, samples.Files]:
    """Files of edits of the tiny model."""
    return samples.edits(readers.model(), readers.paragraphs())


@cache
def corpus() -> samples.Files:
    """A folder of tokens."""
    return samples.corpus_folder(readers.model().tokenizer)


def _checkpoint(name: str) -> Callable[[], Mapping[str, bytes]]:
    return lambda: samples.checkpoints()[name]


def _edit(name: str) -> Callable[[], Mapping[str, bytes]]:
    return lambda: edits()[name]


def _text(name: str, *mutations: Mutation, read: Reader = readers.text, weight: float = 5.0) -> Kind:
    return Kind(name, only(texts, name), name, mutations, read, weight)


CONFIG, TOKENIZER, PLAIN = of_json(*CONFIG_KEYS), of_json(*TOKENIZER_KEYS), of_json()
TABLES = (mutate_parquet, mutate_bytes)
TENSORS = (mutate_safetensors, mutate_safetensors, mutate_bytes)
STUDY_NC = ("gradients.nc", "heads.nc", "rare.nc", "unlearn.nc", "attention.nc", "patching.nc")
KINDS: tuple[Kind, ...] = (
    _text("a.txt", mutate_bytes),
    _text("a.jsonl", mutate_bytes, mutate_lines),
    _text("a.txt.gz", mutate_bytes, compressed("gz")),
    _text("a.jsonl.gz", mutate_bytes, compressed("gz")),
    _text("a.txt.zst", mutate_bytes, compressed("zst")),
    _text("a.jsonl.zst", mutate_bytes, compressed("zst")),
    Kind("corpus of text", only(texts, "long.jsonl"), ".jsonl", (mutate_bytes, mutate_lines), readers.corpus, 0.3),
    Kind("ids.npy", only(tables, "ids.npy"), ".npy", (mutate_bytes, mutate_npy), readers.table, 4),
    Kind("corpus of ids", only(tables, "ids.npy"), ".npy", (mutate_bytes, mutate_npy), readers.corpus, 0.5),
    Kind("text.parquet", only(tables, "text.parquet"), ".parquet", TABLES, readers.text, 3),
    Kind("tokens.parquet", only(tables, "tokens.parquet"), ".parquet", TABLES, readers.table, 3),
    Kind("scored.parquet", only(tables, "tokens.parquet"), ".parquet", TABLES, readers.scored_table, 0.5),
    Kind("corpus of tokens", only(tables, "tokens.parquet"), ".parquet", TABLES, readers.corpus, 0.5),
    *(
        Kind(f"{name}/config.json", _checkpoint(name), "/config.json", (CONFIG, CONFIG, mutate_bytes), checkpoint)
        for name in samples.CONFIGS
    ),
    Kind("model.safetensors", _checkpoint("gpt_neo"), "model.safetensors", TENSORS, checkpoint),
    Kind("index.json", _checkpoint("parts"), ".index.json", (PLAIN, PLAIN, mutate_bytes), checkpoint, 0.5),
    Kind("tokenizer.json", _checkpoint("gpt_neo"), "/tokenizer.json", (PLAIN, PLAIN, mutate_bytes), checkpoint),
    Kind("tokenizer_config.json", _checkpoint("gpt2"), "tokenizer_config.json", (TOKENIZER, TOKENIZER, mutate_bytes),
         checkpoint),
    *(
        Kind(name, _checkpoint("old tokenizer"), f"/{name}", (TOKENIZER, PLAIN, mutate_bytes), checkpoint, 0.3)
        for name in ("vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json")
    ),
    Kind("sparse edit", _edit("sparse"), "edit.safetensors", TENSORS, readers.edit, 2),
    Kind("whole edit", _edit("whole"), "edit.safetensors", TENSORS, readers.edit),
    Kind("mask", _edit("mask"), "mask.safetensors", TENSORS, readers.mask, 3),
    Kind("checkpoint of an edit", _edit("checkpoint"), ".safetensors", TENSORS, readers.edit_checkpoint, 0.3),
    Kind("settings of an edit", _edit("settings"), ".json", (PLAIN, PLAIN, mutate_bytes), readers.edit_settings, 2),
    Kind("study.json", only(study, "study.json"), "study.json", (PLAIN, PLAIN, mutate_bytes), readers.study_json, 5),
    Kind("patch.toml", cache(samples.experiment_file), ".toml", (mutate_bytes,), readers.experiment, 3),
    Kind("study.toml", cache(samples.config_file), ".toml", (mutate_bytes,), readers.config, 3),
    *(
        Kind(name, only(study, name), name, (mutate_netcdf, mutate_bytes), readers.results, 0.7)
        for name in STUDY_NC
    ),
    *(
        Kind(f"report of {name}", study, name, (mutate_netcdf,), readers.report, 0.02)
        for name in STUDY_NC
    ),
    Kind("report of study.json", study, "study.json", (PLAIN,), readers.report, 0.02),
    Kind("report of paragraphs", study, "paragraphs.parquet", (mutate_parquet,), readers.report, 0.02),
    Kind("SHA256SUMS", only(study, "SHA256SUMS", "heads.nc", "rare.nc"), "SUMS", (mutate_bytes,), readers.results, 0.7),
    Kind("saved dataset", cache(samples.saved_dataset), ".json", (PLAIN, mutate_bytes), readers.dataset, 0.5),
    Kind("saved rows", cache(samples.saved_dataset), ".arrow", (mutate_bytes,), readers.dataset, 0.3),
    Kind("corpus folder", corpus, ".json", (PLAIN, mutate_bytes), readers.corpus_folder, 0.3),
    *(
        Kind(f"published {name}", published, name, (mutate_bytes, mutate_npy), readers.published_files, 0.5)
        for name in ("em50.npy", "em30_49.npy", "pairs_perturbed.npy")
    ),
    Kind("published table", published, "memorized.csv", (mutate_bytes,), readers.published_files, 2),
    *(
        Kind(f"repeated study's {name}", repeated, name, (PLAIN, mutate_bytes), readers.repeated_study, 2)
        for name in ("sets.json", "paper.json")
    ),
    Kind("detector.json", cache(samples.detector), "detector.json", (PLAIN, PLAIN, mutate_bytes), readers.detector, 2),
    Kind("detector's numbers", cache(samples.detector), "detector.safetensors", TENSORS, readers.detector),
    Kind("corpus shard", corpus, ".npz", (mutate_bytes,), readers.corpus_folder, 0.2),
)  # fmt: skip


def choose(rng: random.Random, kinds: tuple[Kind, ...] = KINDS) -> Kind:
    """A kind, by its weight."""
    return rng.choices(kinds, [kind.weight for kind in kinds])[0]
