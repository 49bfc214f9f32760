"""The layers of a decoder, and the one loop over them that scoring, tracing, patching and training share."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from mechmem.data.errors import InputError
from mechmem.model.attention_scores import ADVICE
from mechmem.model.lean.attention import Heads
from mechmem.model.lean.weights import Affine, Layer

Rotation = tuple[Tensor, Tensor] | None
# (layer, its new keys, its new values) -> those of earlier positions and these.
Extend = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
# (layer, its heads, what else it computed by site): called at the end of every layer.
Watch = Callable[[int, Heads, Mapping[str, Tensor]], None]
# (layer, its heads, the residual stream that enters it): called before the layer writes.
WatchHeads = Callable[[int, Heads, Tensor], None]


class Layers:
    """The layers of a decoder as matrix products; `LeanModel` fills the attributes."""

    layers: list[Layer]
    n_heads: int
    parallel: bool
    device: torch.device
    dtype: torch.dtype
    # Whether NaN and infinite results are refused; training looks at its losses instead.
    refuses_nonfinite = True
    _activation: Callable[[Tensor], Tensor]
    _eps: float
    _rotary: tuple[int, Tensor] | None

    def run(
        self,
        residual: Float[Tensor, "paragraph pos d_model"],
        *,
        first: int = 0,
        stop: int | None = None,
        start: int = 0,
        needed: int = 0,
        extend: Extend | None = None,
        watch: Watch | None = None,
        watch_heads: WatchHeads | None = None,
        in_place: bool = True,
    ) -> Float[Tensor, "paragraph needed_pos d_model"]:
        """The residual stream after layer `stop - 1`, from what enters layer `first`.

        1. Queries, keys and values; 2. attention; 3. the MLP, of the sum or beside the attention.

        Args:
            residual: at positions `start` and later; left as it is.
            first: the first layer that runs.
            stop: the first that does not; None: all run.
            start: position of the first column.
            needed: positions before this one are not taken through the model's last layer, nor returned.
            extend: gives the keys and values of earlier positions.
            watch: is told what each layer computes.
            watch_heads: is told of each layer's heads. Copy the residual stream to keep it: it is written over later.
            in_place: whether layers may write over the stream that another one made; if not, no copy is needed.

        Raises:
            InputError: the result has a NaN or infinite value; the sentence names the layer where the first appears.
        """
        entered, depth = residual, len(self.layers)
        rotation = self.rotation(start, residual.shape[1], residual.dtype)
        for number in range(first, depth if stop is None else stop):
            layer = self.layer(number, residual.dtype)
            heads = self.heads(number, layer, residual, rotation, start, needed, extend)
            if heads.query.shape[2] < residual.shape[1]:
                residual = residual[:, -heads.query.shape[2] :]
            if watch_heads is not None:
                watch_heads(number, heads, residual)
            if watch is not None:
                residual = self._watched(number, layer, residual, heads, watch)
                continue
            attention = self.attention_out(layer, heads.output)
            # Freed before the MLP: its blocks of memory are used again.
            del heads
            residual = self.after_attention(layer, residual, attention, in_place=in_place and number > first)
        if self.refuses_nonfinite and watch is None and not bool(residual.isfinite().all()):
            options = {"first": first, "stop": stop, "start": start, "needed": needed, "extend": extend}
            self._refuse_nonfinite(entered, options)
        return residual

    def heads(
        self,
        number: int,
        layer: Layer,
        residual: Float[Tensor, "paragraph pos d_model"],
        rotation: Rotation,
        start: int = 0,
        needed: int = 0,
        extend: Extend | None = None,
    ) -> Heads:
        """What a layer attends with: queries, keys and values of the residual stream that enters it."""
        query, key, value = self.queries_keys_values(layer, residual, rotation)
        if extend is not None:
            key, value = extend(number, key, value)
        if number == len(self.layers) - 1 and needed > start:
            query, start = query[:, :, needed - start :], needed
        return Heads(query, key, value, self.visible(start, key.shape[2], layer.window), layer.scale)

    def layer(self, number: int, dtype: torch.dtype) -> Layer:
        """A layer's weights in a type, converted now and not held."""
        layer = self.layers[number]
        return layer if dtype == self.dtype else layer.to(dtype)

    def _watched(self, number: int, layer: Layer, residual: Tensor, heads: Heads, watch: Watch) -> Tensor:
        z = heads.output
        attention = self.attention_out(layer, z)
        middle = residual if self.parallel else residual + attention
        neurons = self.neurons(layer, middle)
        written = self.mlp_out(layer, neurons)
        after = residual + attention + written
        seen = {"z": z, "attn_out": attention, "resid_pre": residual, "resid_mid": middle}
        watch(number, heads, seen | {"mlp_post": neurons, "mlp_out": written, "resid_post": after})
        return after

    def _refuse_nonfinite(self, residual: Tensor, options: Mapping[str, object]) -> None:
        """Run again and look at every layer."""
        if not bool(residual.isfinite().all()):
            raise InputError(f"NaN or infinite values enter the first layer; need finite ones: {ADVICE}")

        def look(number: int, heads: Heads, seen: Mapping[str, Tensor]) -> None:
            for site, value in {"q": heads.query, "k": heads.key, "v": heads.value, **seen}.items():
                if not bool(value.isfinite().all()):
                    raise InputError(
                        f"layer {number} gives NaN or infinite values, first at site '{site}'; need finite ones: "
                        f"{ADVICE}"
                    )

        self.run(residual, watch=look, **options)  # pyright: ignore[reportArgumentType]

    def queries_keys_values(
        self, layer: Layer, residual: Float[Tensor, "paragraph pos d_model"], rotation: Rotation
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A layer's queries, keys and values, each [paragraph, head, pos, d_head], rotated where the model does."""
        fused = self.affine(self._normalize(residual, layer.norm_attention), layer.w_qkv, layer.b_qkv)
        query, key, value = rearrange(
            fused, "paragraph pos (three head d_head) -> three paragraph head pos d_head", three=3, head=self.n_heads
        )
        if rotation is not None:
            query, key = _rotate(query, rotation), _rotate(key, rotation)
        return query, key, value

    def attention_out(
        self, layer: Layer, z: Float[Tensor, "paragraph head pos d_head"]
    ) -> Float[Tensor, "paragraph pos d_model"]:
        """What attention writes to the residual stream."""
        return self.affine(
            rearrange(z, "paragraph head pos d_head -> paragraph pos (head d_head)"), layer.w_o, layer.b_o
        )

    def neurons(self, layer: Layer, residual: Float[Tensor, "*row d_model"]) -> Float[Tensor, "*row d_mlp"]:
        """The MLP's neurons after their activation function."""
        return self._activation(self.affine(self._normalize(residual, layer.norm_mlp), layer.w_in, layer.b_in))

    def mlp_out(self, layer: Layer, neurons: Float[Tensor, "*row d_mlp"]) -> Float[Tensor, "*row d_model"]:
        """What the MLP writes to the residual stream."""
        return self.affine(neurons, layer.w_out, layer.b_out)

    def affine(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """The product x @ weight + bias, over the last axis of x."""
        return torch.addmm(bias, x.flatten(0, -2), weight).view(*x.shape[:-1], weight.shape[1])

    def after_attention(
        self,
        layer: Layer,
        residual: Float[Tensor, "*row d_model"],
        attention: Float[Tensor, "*row d_model"],
        *,
        in_place: bool = False,
    ) -> Float[Tensor, "*row d_model"]:
        """The residual stream after a layer, from what entered it and what attention wrote.

        In place, `residual` is written over where no gradients are taken.
        """
        if torch.is_grad_enabled():
            middle = residual if self.parallel else residual + attention
            written = self.mlp_out(layer, self.neurons(layer, middle))
            return residual + attention + written if self.parallel else middle + written
        if self.parallel:
            return (residual + attention).add_(self.mlp_out(layer, self.neurons(layer, residual)))
        middle = residual.add_(attention) if in_place else residual + attention
        return middle.add_(self.mlp_out(layer, self.neurons(layer, middle)))

    def visible(self, past: int, stop: int, window: int | None) -> Bool[Tensor, "query_pos key_pos"]:
        """Which keys 0 ... stop - 1 each query past ... stop - 1 sees."""
        distance = torch.arange(past, stop, device=self.device)[:, None] - torch.arange(stop, device=self.device)
        return (distance >= 0) & (distance < (stop if window is None else window))

    def rotation(self, past: int, count: int, dtype: torch.dtype) -> Rotation:
        """Cosines and sines of positions `past` to `past + count`, for models with rotary positions."""
        if self._rotary is None:
            return None
        angles = torch.arange(past, past + count, device=self.device, dtype=torch.float64)[:, None] * self._rotary[1]
        angles = torch.cat([angles, angles], -1)
        return angles.cos().to(dtype), angles.sin().to(dtype)

    def _normalize(self, residual: Tensor, norm: Affine) -> Tensor:
        weight, bias = norm or (None, None)
        return functional.layer_norm(residual, residual.shape[-1:], weight, bias, self._eps)


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding of the first dimensions of each head, halves paired."""
    cos, sin = rotation
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = turned.chunk(2, -1)
    return torch.cat([turned * cos + torch.cat([-second, first], -1) * sin, rest], -1)
