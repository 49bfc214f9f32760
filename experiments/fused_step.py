"""The training step of `corpus_training` in fewer passes over memory; the tests hold it against the plain one.

Weights are cast to bfloat16 once a step. Attention is computed in blocks of queries, each against the keys that it can
see. The loss and its gradient are computed for a block of rows at a time, so no logits of the whole batch are kept.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional
from transformers import GPTNeoForCausalLM

# Queries of a block of attention, and rows of logits of a block of the loss: what fits a core's cache.
QUERIES = 64
ROWS = 512


class BlockAttention(torch.autograd.Function):
    """Causal attention without scaling, for tensors [row and head, pos, d_head]."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Each query's mean of the values of its last `window` positions, itself included."""
        out, patterns = torch.empty_like(query), []
        for start in range(0, query.shape[1], QUERIES):
            stop = min(start + QUERIES, query.shape[1])
            first = max(0, start - window + 1)
            scores = torch.bmm(query[:, start:stop], key[:, first:stop].mT)
            scores += hidden(start, stop, first, window, scores.dtype)
            patterns.append(scores.softmax(-1))
            out[:, start:stop] = torch.bmm(patterns[-1], value[:, first:stop])
        ctx.save_for_backward(query, key, value, *patterns)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Gradients of queries, keys and values."""
        query, key, value, *patterns = ctx.saved_tensors
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for start, pattern in zip(range(0, query.shape[1], QUERIES), patterns, strict=True):
            stop = start + pattern.shape[1]
            seen = slice(stop - pattern.shape[2], stop)
            of_value[:, seen] += torch.bmm(pattern.mT, grad[:, start:stop])
            of_pattern = torch.bmm(grad[:, start:stop], value[:, seen].mT)
            of_scores = torch._softmax_backward_data(of_pattern, pattern, -1, pattern.dtype)
            of_query[:, start:stop] = torch.bmm(of_scores, key[:, seen])
            of_key[:, seen] += torch.bmm(of_scores.mT, query[:, start:stop])
        return of_query, of_key, of_value, None


def hidden(start: int, stop: int, first: int, window: int, dtype: torch.dtype) -> Tensor:
    """Minus infinity where a query from `start` on does not see a key from `first` on, else 0, [query_pos, key_pos]."""
    distance = torch.arange(start, stop)[:, None] - torch.arange(first, stop)
    return torch.zeros(distance.shape, dtype=dtype).masked_fill_((distance < 0) | (distance >= window), -torch.inf)


class UnembeddingLoss(torch.autograd.Function):
    """Mean NLL of the next tokens, in nats per token; gradients are computed on the way, so only their size is kept."""

    @staticmethod
    def forward(ctx, final: Tensor, unembedding: Tensor, targets: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The loss of final residuals [row, d_model], an unembedding [d_vocab, d_model] and tokens [row]."""
        of_final, of_unembedding = torch.empty_like(final), torch.zeros_like(unembedding, dtype=torch.float32)
        total = 0.0
        for rows, residual, token in zip(
            range(0, len(final), ROWS), final.split(ROWS), targets.split(ROWS), strict=True
        ):
            log_probs = (residual @ unembedding.T).float().log_softmax(-1)
            total -= float(log_probs.gather(1, token[:, None]).sum())
            slope = log_probs.exp_()
            slope[torch.arange(len(token)), token] -= 1
            slope = slope.mul_(1 / len(final)).to(final.dtype)
            of_final[rows : rows + ROWS] = slope @ unembedding
            of_unembedding += slope.T @ residual
        ctx.save_for_backward(of_final, of_unembedding.to(unembedding.dtype))
        return final.new_tensor(total / len(final), dtype=torch.float32)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """What was computed on the way, times the slope of what came after, which is 1 in training."""
        of_final, of_unembedding = ctx.saved_tensors
        return of_final * grad, of_unembedding * grad, None


def mean_nll(model: GPTNeoForCausalLM, rows: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Mean NLL of rows of tokens, [row, pos], each token but the first given those before it.

    Args:
        model: as `corpus_training.build` makes it, without dropout.
        rows: token ids.
        dtype: of the products; the residual stream and the norms stay in float32.
    """
    weights = {name: value.to(dtype) for name, value in model.named_parameters() if value.ndim > 1}
    biases = {name: value for name, value in model.named_parameters() if value.ndim == 1}
    n_heads, (count, length) = model.config.num_heads, rows.shape
    residual = model.transformer.wte.weight[rows] + model.transformer.wpe.weight[:length]
    for number, kind in enumerate(model.config.attention_layers):
        at = f"transformer.h.{number}."
        window = length if kind == "global" else model.config.window_size
        x = norm(residual, biases, f"{at}ln_1", model.config.layer_norm_epsilon).to(dtype)
        fused = torch.cat([weights[f"{at}attn.attention.{part}_proj.weight"] for part in "qkv"])
        heads = functional.linear(x, fused).view(count, length, 3, n_heads, -1).permute(2, 0, 3, 1, 4)
        z = BlockAttention.apply(*heads.contiguous().flatten(1, 2), window)
        z = z.view(count, n_heads, length, -1).transpose(1, 2).reshape(count, length, -1)  # pyright: ignore
        residual = residual + affine(z, weights, biases, f"{at}attn.attention.out_proj")
        x = norm(residual, biases, f"{at}ln_2", model.config.layer_norm_epsilon).to(dtype)
        neurons = functional.gelu(affine(x, weights, biases, f"{at}mlp.c_fc"), approximate="tanh")
        residual = residual + affine(neurons, weights, biases, f"{at}mlp.c_proj")
    final = norm(residual, biases, "transformer.ln_f", model.config.layer_norm_epsilon).to(dtype)
    unembedding = weights["transformer.wte.weight"]
    loss = UnembeddingLoss.apply(final[:, :-1].flatten(0, 1), unembedding, rows[:, 1:].flatten())
    return loss  # pyright: ignore[reportReturnType]


def norm(residual: Tensor, biases: Mapping[str, Tensor], name: str, eps: float) -> Tensor:
    """LayerNorm in float32."""
    return functional.layer_norm(residual, residual.shape[-1:], biases[f"{name}.weight"], biases[f"{name}.bias"], eps)


def affine(x: Tensor, weights: Mapping[str, Tensor], biases: Mapping[str, Tensor], name: str) -> Tensor:
    """A linear layer with a bias."""
    return functional.linear(x, weights[f"{name}.weight"], biases[f"{name}.bias"].to(x.dtype))


def fused_step(model: GPTNeoForCausalLM, optimizer: torch.optim.Optimizer, rows: Tensor, clip_norm: float) -> float:
    """As `corpus_training.descend`: one step down the mean NLL of rows, [row, pos]; returns it, in nats per token."""
    loss = mean_nll(model, rows)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.item()
