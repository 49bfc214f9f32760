"""A decoder as plain matrix products, for scoring: the same numbers as the hooked model without its hooks.

transformers has no fused attention for GPT-Neo, and HookedTransformer keeps every intermediate. Here one product gives
queries, keys and values of all heads, attention is global or local, and keys and values can be kept, so that what two
sequences share before a position is computed once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional
from transformer_lens import HookedTransformer

from mechmem.data.errors import InputError
from mechmem.model.hooks import hooked_points, refuse_hooks
from mechmem.model.lean.layers import Layers
from mechmem.model.lean.weights import Affine, layer_weights, norm_weights, unsupported
from mechmem.model.model_lock import holding

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "silu": functional.silu,
} | dict.fromkeys(("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), lambda x: functional.gelu(x, approximate="tanh"))


class KeyValues:
    """Keys and values of positions that were run, for all layers, [layer, paragraph, head, pos, d_head].

    Attributes:
        length: positions that count. Setting it lower forgets the later ones; the next forward writes over them.
    """

    def __init__(self, model: LeanModel, paragraphs: int, capacity: int):
        shape = (len(model.layers), 2, paragraphs, model.n_heads, capacity, model.d_head)
        self._kept = torch.empty(shape, dtype=model.dtype, device=model.device)
        self.length = 0

    def extend(
        self,
        layer: int,
        key: Float[Tensor, "paragraph head pos d_head"],
        value: Float[Tensor, "paragraph head pos d_head"],
    ) -> tuple[Tensor, Tensor]:
        """Write one layer's new keys and values behind the first `length` positions; return all of them."""
        stop = self.length + key.shape[2]
        kept = self._kept[layer, :, :, :, :stop]
        kept[0, :, :, self.length :] = key
        kept[1, :, :, self.length :] = value
        return kept[0], kept[1]

    def select(self, rows: Int[Tensor, " chosen"]) -> KeyValues:
        """A copy that holds some of the paragraphs, with room for as many positions."""
        chosen = object.__new__(KeyValues)
        layers, two, _, heads, capacity, d_head = self._kept.shape
        chosen._kept = self._kept.new_empty(layers, two, len(rows), heads, capacity, d_head)
        chosen._kept[..., : self.length, :] = self._kept[:, :, rows, :, : self.length]
        chosen.length = self.length
        return chosen


def runs_lean(model: HookedTransformer) -> bool:
    """Whether a `LeanModel` computes what the model does: a known architecture without hooks on it."""
    return not unsupported(model) and not hooked_points(model)


class LeanModel(Layers):
    """A HookedTransformer's weights, as they are now, ready to run without hooks or gradients.

    GPT-Neo, GPT-2 and GPT-NeoX, raw or folded. Matrices of the same type are shared with the model, only the fused
    queries, keys and values are a copy.

    Raises:
        InputError: an architecture whose forward is not one of these, or a model with hooks, which would not run.
    """

    def __init__(self, model: HookedTransformer, dtype: torch.dtype | None = None):
        # Another thread's hooks, or its edit in place, end first.
        with holding(model):
            self._take(model, dtype)

    def _take(self, model: HookedTransformer, dtype: torch.dtype | None) -> None:
        reason = unsupported(model)
        if reason:
            raise InputError(f"{reason}; need a GPT-Neo, GPT-2 or GPT-NeoX: score this model with mechmem.score")
        refuse_hooks(model, "the forward without hooks")
        cfg = model.cfg
        self.dtype, self.device = dtype or model.W_E.dtype, model.W_E.device
        self.n_heads, self.d_head, self.d_vocab, self.n_ctx = cfg.n_heads, cfg.d_head, cfg.d_vocab, cfg.n_ctx
        self.d_model = cfg.d_model
        self._eps, self.parallel = cfg.eps, cfg.parallel_attn_mlp
        self._activation = ACTIVATIONS[str(cfg.act_fn)]
        self._embedding = model.W_E.detach().to(self.dtype)
        self._rotary: tuple[int, Tensor] | None = None
        self.positions: Tensor | None = None
        if cfg.positional_embedding_type == "rotary":
            assert cfg.rotary_dim is not None
            exponents = torch.arange(0, cfg.rotary_dim, 2, dtype=torch.float64) / cfg.rotary_dim
            self._rotary = cfg.rotary_dim, (float(cfg.rotary_base) ** -exponents).to(self.device)
        else:
            self.positions = model.W_pos.detach().to(self.dtype)
        self._final: Affine = norm_weights(model.ln_final, self.dtype)
        self._unembedding = model.W_U.detach().to(self.dtype)
        # Raw models have none, but TransformerLens gives them zeros.
        bias = model.b_U.detach().to(self.dtype)
        self._unembedding_bias = bias if bool(bias.any()) else None
        self.layers = [layer_weights(model, number).to(self.dtype) for number in range(cfg.n_layers)]

    @property
    def rotates(self) -> bool:
        """Whether queries and keys are rotated by their positions."""
        return self._rotary is not None

    @torch.no_grad()
    def forward(
        self,
        tokens: Int[Tensor, "paragraph pos"],
        kept: KeyValues | None = None,
        *,
        needed: int = 0,
        dtype: torch.dtype | None = None,
    ) -> Float[Tensor, "paragraph needed_pos d_model"]:
        """The normalized residual stream at the end of the body, which `unembed` takes.

        Args:
            tokens: ids, on any device; they follow the positions that are kept.
            kept: earlier positions' keys and values; those of `tokens` are added. None: the tokens begin the text.
            needed: positions before this one are not returned.
            dtype: compute in this type; each layer's weights are converted when it runs and not held.

        Raises:
            InputError: the result has a NaN or infinite value; the sentence names the layer where the first appears.
        """
        past = 0 if kept is None else kept.length
        residual = self.embed(tokens, past, dtype or self.dtype)
        residual = self.run(residual, start=past, needed=needed, extend=None if kept is None else kept.extend)
        if kept is not None:
            kept.length += tokens.shape[1]
        return self.final_norm(residual)

    def embed(
        self, tokens: Int[Tensor, "paragraph pos"], past: int = 0, dtype: torch.dtype | None = None
    ) -> Float[Tensor, "paragraph pos d_model"]:
        """The residual stream that enters the first layer."""
        dtype = dtype or self.dtype
        residual = self._embedding[tokens.to(self.device)].to(dtype)
        if self.positions is not None:
            residual += self.positions[past : past + tokens.shape[1]].to(dtype)
        return residual

    def residual_after(
        self, layer: int, tokens: Int[Tensor, "paragraph pos"], prefix_len: int
    ) -> Float[Tensor, "paragraph needed_pos d_model"]:
        """The residual stream after a layer; the last columns are those that score the continuation.

        All positions but the last token's, or after the last layer, where no other is needed, those columns alone.
        """
        return self.run(self.embed(tokens[:, :-1]), stop=layer + 1, needed=prefix_len - 1)

    def final_norm(self, residual: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_model"]:
        """The normalized end of the body."""
        final = self._final if self._final is None else tuple(tensor.to(residual.dtype) for tensor in self._final)
        return self._normalize(residual, final)  # pyright: ignore[reportArgumentType]

    @torch.no_grad()
    def unembed(self, hidden: Float[Tensor, "*column d_model"]) -> Float[Tensor, "*column d_vocab"]:
        """Logits of some columns of what `forward` gave, in its type."""
        # Rows first: with columns cut out of a batch, torch would copy the whole matrix for each paragraph.
        logits = hidden.reshape(-1, hidden.shape[-1]) @ self._unembedding.to(hidden.dtype)
        if self._unembedding_bias is not None:
            logits.add_(self._unembedding_bias.to(hidden.dtype))
        return logits.view(*hidden.shape[:-1], -1)


class _FastProducts:
    """How many blocks, of all threads, want fast products; the setting is one for the whole process."""

    lock = threading.Lock()
    blocks = 0
    before = ""


@cache
def _medium_is_float32() -> bool:
    """Whether this processor's products at the precision "medium" are as exact as float32's, found by making some."""
    random = torch.Generator().manual_seed(0)
    left, right = (torch.randn(512, 512, generator=random) for _ in range(2))
    true = left.double() @ right.double()
    with _FastProducts.lock:
        before = torch.get_float32_matmul_precision()
        try:
            errors = []
            for precision in ("highest", "medium"):
                torch.set_float32_matmul_precision(precision)
                errors.append(float((_product(left, right) - true).abs().max()))
        finally:
            torch.set_float32_matmul_precision(before)
    # Another order of the sums changes the error a few times; bfloat16's is 10,000 times as large.
    return errors[1] < 100 * errors[0]


def _product(left: Tensor, right: Tensor) -> Tensor:
    return left @ right


@contextmanager
def fast_float32(device: torch.device) -> Iterator[None]:
    """On a CPU, let oneDNN do float32 products: twice as fast as the default library where this was written.

    Torch's name for it is the precision "medium", by which it permits bfloat16. A GPU and processors with tiles for
    bfloat16 (Intel's AMX) would use it and lose four digits, so nothing changes there. The first block of any thread
    sets it, the last one restores what was set before.
    """
    if device.type != "cpu" or not _medium_is_float32():
        yield
        return
    with _FastProducts.lock:
        if _FastProducts.blocks == 0:
            _FastProducts.before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("medium")
        _FastProducts.blocks += 1
    try:
        yield
    finally:
        with _FastProducts.lock:
            _FastProducts.blocks -= 1
            if _FastProducts.blocks == 0:
                torch.set_float32_matmul_precision(_FastProducts.before)
