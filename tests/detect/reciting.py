"""A random model and paragraphs of which it recites some: their continuation is what it says."""

import copy
from typing import Any

import numpy as np
import torch

import mechmem as mm
from mechmem.detect.decoding.decoding_settings import DecodingSettings

PREFIX, LENGTH = 12, 22


def greedy(model: Any, prefix: torch.Tensor, length: int) -> torch.Tensor:
    """What the model says after prefixes."""
    tokens = torch.cat([prefix, prefix[:, :1].expand(-1, length)], 1)
    features = mm.detection_features(
        model, mm.Paragraphs(tokens, prefix.shape[1]), features="output", decoding=DecodingSettings(ks=(0,))
    )
    return torch.from_numpy(features.said.values)


def reciting(model: Any, count: int, seed: int = 0, length: int = LENGTH) -> tuple[mm.Paragraphs, mm.Paragraphs]:
    """Recited paragraphs, whose prefixes are of five tokens, and others, of five other tokens."""
    rng = torch.Generator().manual_seed(seed)
    low, high = (first + torch.randint(0, 5, (count, PREFIX), generator=rng) for first in (0, 40))
    own = greedy(model, torch.cat([low, high]), length - PREFIX)
    recited = torch.cat([low, own[:count]], 1)
    # The first token is another one than the model says: none of the text leads the continuation.
    strange = own[count:].clone()
    strange[:, 0] = (strange[:, 0] + 1) % 61
    numbers = np.arange(count)
    memorized = mm.Paragraphs(recited, PREFIX).with_columns(cluster=numbers // 2)
    return memorized, mm.Paragraphs(torch.cat([high, strange], 1), PREFIX).with_columns(cluster=1000 + numbers // 2)


def together(first: mm.Paragraphs, second: mm.Paragraphs) -> mm.Paragraphs:
    """Both sets as one."""
    whole = mm.Paragraphs(torch.cat([first.tokens, second.tokens]), first.prefix_len)
    return whole.with_columns(cluster=np.concatenate([first.clusters, second.clusters]))


def edited(model: Any) -> Any:
    """A copy whose text differs."""
    other = copy.deepcopy(model)
    other.blocks[1].mlp.W_out.data *= 1.5
    return other
