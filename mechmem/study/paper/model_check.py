"""Whether a model is the study's own: only then do the published numbers apply."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from mechmem.data.paragraphs import Paragraphs
from mechmem.model.load import HookedTransformer
from mechmem.study.paper.published_files import VOCABULARY

NAME = "GPT-Neo 125M"
SHAPE = {"n_layers": 12, "n_heads": 12, "d_model": 768, "d_mlp": 3072, "d_vocab": VOCABULARY}
ARCHITECTURE = "GPTNeoForCausalLM"
# Of the study's memorized paragraphs, the share that the model must reproduce: near-ties may fall otherwise.
SHARE = 0.95
# Rows whose text is encoded again.
TEXTS = 32
# GPT-2's tokenizer: its end of text, and the ids of a text that no other vocabulary of the size gives.
END_OF_TEXT = 50_256
PROBE = "The quick brown fox"
PROBE_IDS = [464, 2068, 7586, 21831]


@dataclass(frozen=True)
class ModelCheck:
    """What was checked.

    Attributes:
        applies: whether the published numbers apply.
        sentences: what was found, one sentence each.
    """

    applies: bool
    sentences: tuple[str, ...]


def check_paper_model(model: HookedTransformer, memorized: Paragraphs | None, em: np.ndarray | None) -> ModelCheck:
    """Compare a model's shape, tokenizer and EM with the study's.

    Args:
        model: any.
        memorized: the study's own memorized paragraphs, if they are known; a column `text` is encoded again.
        em: their EM under the model.
    """
    return compared(model.cfg, model.tokenizer, memorized, em)


def compared(config: Any, tokenizer: Any, memorized: Paragraphs | None, em: np.ndarray | None) -> ModelCheck:
    """As `check_paper_model`, of a model's configuration and tokenizer."""
    wrong: list[str] = []
    shape = {name: getattr(config, name) for name in SHAPE}
    if different := [f"{name} {shape[name]} instead of {SHAPE[name]}" for name in SHAPE if shape[name] != SHAPE[name]]:
        wrong.append(f"the model has another shape than {NAME}: {', '.join(different)}")
    if config.original_architecture not in (ARCHITECTURE, None):
        wrong.append(f"the model is a {config.original_architecture}; the study's is a GPT-Neo")
    if (reason := _other_tokenizer(tokenizer, memorized)) is not None:
        wrong.append(reason)
    if memorized is not None and em is not None:
        whole = int((em == memorized.continuation_len).sum())
        said = f"the model reproduces {whole} of the study's {len(em)} memorized paragraphs exactly"
        if whole < SHARE * len(em):
            wrong.append(f"{said}; {NAME} reproduces all")
        elif not wrong:
            return ModelCheck(True, (f"{said}, and its shape and tokenizer are those of {NAME}",))
    if wrong:
        return ModelCheck(False, (*wrong, "the published numbers do not apply to this model"))
    return ModelCheck(
        True,
        (
            f"shape and tokenizer are those of {NAME}",
            "the corpus has none of the study's files, so that the weights could not be compared",
        ),
    )


def _other_tokenizer(tokenizer: Any, memorized: Paragraphs | None) -> str | None:
    """Why the tokenizer is not GPT-2's, or None."""
    if tokenizer is None:
        return "the model has no tokenizer; the study's is GPT-2's"
    if tokenizer.eos_token_id != END_OF_TEXT or tokenizer.encode(PROBE, add_special_tokens=False) != PROBE_IDS:
        return "the tokenizer is not GPT-2's"
    if memorized is not None and memorized.has("text"):
        texts, rows = memorized.column("text")[:TEXTS].tolist(), memorized.tokens[:TEXTS].tolist()
        same = sum(
            tokenizer.encode(text, add_special_tokens=False) == row for text, row in zip(texts, rows, strict=True)
        )
        # A cut between the bytes of a character cannot be encoded back.
        if same < 0.8 * len(rows):
            return f"the tokenizer gives {same} of {len(rows)} of the study's texts the study's ids"
    return None
