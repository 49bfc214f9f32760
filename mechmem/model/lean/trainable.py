"""The lean forward with gradients: of whole weight matrices, or of a few chosen weights and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens import HookedTransformer

from mechmem.model.lean.model import LeanModel
from mechmem.model.lean.weights import Layer

# A matrix with a larger share of chosen weights gets its gradient from one dense product: picking costs more than that.
SPARSE_SHARE = 0.005
# Weights picked at once: their activations of a thousand tokens take 16 MB.
PICKED_AT_ONCE = 4096
# Logits made at once: the allocator keeps blocks of such a size and asks the system for larger ones anew each time.
LOGITS_BYTES = 2**25
MATRICES = {"Q": "w_qkv", "K": "w_qkv", "V": "w_qkv", "O": "w_o", "in": "w_in", "out": "w_out"}


class TrainableModel(LeanModel):
    """A HookedTransformer's forward for training some of its attention and MLP weights.

    With a mask, the chosen weights of each matrix are kept in a separate vector, and only these vectors get gradients:
    that of a single weight is the product of its input and the gradient of its output, summed over tokens. A sparse
    mask never needs a full matrix of gradients.

    Attributes:
        values: parameter name -> what to optimize: the chosen weights [chosen], in the order of the mask's indices,
            or without a mask the parameter itself.
    """

    # A diverging loss is the training loop's business: it goes back to the weights before.
    refuses_nonfinite = False

    def __init__(self, model: HookedTransformer, names: list[str], indices: Mapping[str, Tensor] | None):
        """Take the parameters `names`; with a mask, their weights that it chose.

        Raises:
            InputError: an architecture whose forward this is not, or hooks on the model.
        """
        super().__init__(model)
        parameters: dict[str, Any] = dict(model.named_parameters())
        self._parameters = {name: parameters[name] for name in names}
        self._dense = indices is None
        self.values: dict[str, Tensor] = {}
        # id of a lean matrix -> (values, rows, columns) for each parameter in it
        self._chosen: dict[int, list[tuple[Tensor, Tensor, Tensor]]] = {}
        self._places: dict[str, tuple[Tensor, Tensor, Tensor, Tensor]] = {}
        for name, parameter in self._parameters.items():
            if indices is None:
                self.values[name] = parameter.requires_grad_()
                continue
            index = indices[name].to(self.device)
            matrix, rows, columns = self._place(name, index)
            values = parameter.detach().reshape(-1)[index].clone().requires_grad_()
            self.values[name] = values
            self._places[name] = index, matrix, rows, columns
            self._chosen.setdefault(id(matrix), []).append((values, rows, columns))

    def _place(self, name: str, index: Int[Tensor, " chosen"]) -> tuple[Tensor, Tensor, Tensor]:
        """The lean matrix [in, out] that holds a parameter's weights, and their rows and columns in it."""
        _, number, _, weight = name.split(".")
        letter = weight.removeprefix("W_")
        matrix: Tensor = getattr(self.layers[int(number)], MATRICES[letter])
        if letter not in "QKV":
            return matrix, index // matrix.shape[1], index % matrix.shape[1]
        inner = matrix.shape[0] * self.d_head
        head, rest = index // inner, index % inner
        start = "QKV".index(letter) * self.n_heads * self.d_head
        return matrix, rest // self.d_head, start + head * self.d_head + rest % self.d_head

    @torch.no_grad()
    def write(self) -> None:
        """Put the values into the model's weights and into the matrices of this forward."""
        for name, (index, matrix, rows, columns) in self._places.items():
            self._parameters[name].view(-1)[index] = self.values[name]
            # Only the fused queries, keys and values are a copy; writing the others twice changes nothing.
            matrix[rows, columns] = self.values[name]

    def continuation_logits(
        self, tokens: Int[Tensor, "paragraph pos"], prefix_len: int
    ) -> Float[Tensor, "paragraph continuation_pos d_vocab"]:
        """As `mechmem.model.forward.continuation_logits`; gradients flow to `values`."""
        return self.unembed_trainable(self.continuation_hidden(tokens, prefix_len))

    def unembed_trainable(
        self, hidden: Float[Tensor, "paragraph continuation_pos d_model"]
    ) -> Float[Tensor, "paragraph continuation_pos d_vocab"]:
        """Logits of normalized hidden states, to which gradients flow."""
        logits = hidden @ self._unembedding
        return logits if self._unembedding_bias is None else logits + self._unembedding_bias

    def rows_at_once(
        self, hidden: Float[Tensor, "paragraph continuation_pos d_model"], together: int = 1
    ) -> Iterator[slice]:
        """Paragraphs whose logits are small enough to be made together, in multiples of `together`."""
        logits = hidden.shape[1] * self._unembedding.shape[1] * hidden.element_size()
        count = max(1, LOGITS_BYTES // logits // together) * together
        return (slice(start, min(start + count, len(hidden))) for start in range(0, len(hidden), count))

    def continuation_hidden(
        self, tokens: Int[Tensor, "paragraph pos"], prefix_len: int
    ) -> Float[Tensor, "paragraph continuation_pos d_model"]:
        """The normalized end of the body at the columns that score the continuation; gradients flow to `values`."""
        # The last token scores nothing; no position before the columns is asked for after the last attention.
        return self.final_norm(self.run(self.embed(tokens[:, :-1]), needed=prefix_len - 1))

    def hidden_from(
        self, layer: int, residual: Float[Tensor, "paragraph pos d_model"], prefix_len: int
    ) -> Float[Tensor, "paragraph continuation_pos d_model"]:
        """As `continuation_hidden`, from what `residual_after` gave of a layer."""
        return self.final_norm(self.run(residual, first=layer + 1, needed=prefix_len - 1))

    def layer(self, number: int, dtype: torch.dtype) -> Layer:
        """A layer's weights as they are now; without a mask, made of the parameters so that gradients flow to them."""
        layer = super().layer(number, dtype)
        if not self._dense:
            return layer
        own = {
            name.rsplit("_", 1)[1]: parameter
            for name, parameter in self._parameters.items()
            if name.startswith(f"blocks.{number}.")
        }
        fused = [rearrange(own[x], "head d_model d_head -> d_model (head d_head)") for x in "QKV"]
        out = rearrange(own["O"], "head d_head d_model -> (head d_head) d_model")
        return replace(layer, w_qkv=torch.cat(fused, -1), w_o=out, w_in=own["in"], w_out=own["out"])

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The product x @ weight + bias, with gradients to the chosen weights."""
        chosen = self._chosen.get(id(weight))
        if chosen is None:
            return super().affine(x, weight, bias)
        flat = _MaskedAffine.apply(x.flatten(0, -2), weight, bias, *(part for group in chosen for part in group))
        assert isinstance(flat, Tensor)
        return flat.view(*x.shape[:-1], weight.shape[1])


class _MaskedAffine(torch.autograd.Function):
    """The product x @ weight + bias, whose weight gradients are taken at chosen places alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, *chosen: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight, *(chosen[i] for i in range(len(chosen)) if i % 3))
        return torch.addmm(bias, x, weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, weight, *places = ctx.saved_tensors
        into = gradient @ weight.T if ctx.needs_input_grad[0] else None
        pairs = list(zip(places[::2], places[1::2], strict=True))
        found: list[Tensor | None] = []
        many = sum(len(rows) for rows, _ in pairs) > SPARSE_SHARE * weight.numel()
        whole = x.T @ gradient if many else None
        for rows, columns in pairs:
            found += [picked(x, gradient, rows, columns) if whole is None else whole[rows, columns], None, None]
        return into, None, None, *found


def picked(
    x: Float[Tensor, "token d_in"],
    gradient: Float[Tensor, "token d_out"],
    rows: Int[Tensor, " chosen"],
    columns: Int[Tensor, " chosen"],
) -> Float[Tensor, " chosen"]:
    """Chosen entries of x.T @ gradient, without the others."""
    left, right = x.T.contiguous(), gradient.T.contiguous()
    result = x.new_empty(len(rows))
    for start in range(0, len(rows), PICKED_AT_ONCE):
        here = slice(start, start + PICKED_AT_ONCE)
        result[here] = (left[rows[here]] * right[columns[here]]).sum(1)
    return result
