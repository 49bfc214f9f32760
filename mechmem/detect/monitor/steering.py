"""Turn heads or neurons of flagged rows down, from the token after the alarm on."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

# No position comes as late: a row that is not flagged.
NEVER = 2**62


class Steering:
    """Which heads and neurons are scaled, and in which rows at which positions.

    Attributes:
        layers: those with a chosen head, and those with a chosen neuron.
    """

    def __init__(
        self,
        heads: Sequence[tuple[int, int]],
        neurons: Sequence[tuple[int, int]],
        factor: float,
        device: torch.device,
    ) -> None:
        self._heads = {layer: torch.tensor(chosen, device=device) for layer, chosen in _by_layer(heads).items()}
        self._neurons = {layer: torch.tensor(chosen, device=device) for layer, chosen in _by_layer(neurons).items()}
        self._factor = factor
        self._first: Tensor | None = None
        self._length = 0

    @property
    def head_layers(self) -> tuple[int, ...]:
        """Layers with a chosen head."""
        return tuple(sorted(self._heads))

    @property
    def neuron_layers(self) -> tuple[int, ...]:
        """Layers with a chosen neuron."""
        return tuple(sorted(self._neurons))

    def plan(self, flagged: Bool[Tensor, " row"], length: int) -> None:
        """Say what the next forward scales.

        Args:
            flagged: rows whose tokens from the next one on are scaled; earlier ones stay as they are.
            length: positions that were run, padding included.
        """
        if self._first is None:
            self._first = torch.full((len(flagged),), NEVER, device=flagged.device)
        self._first = torch.where(flagged & (self._first == NEVER), length, self._first)
        self._length = length + 1
        self.on = bool(flagged.any())

    def stop(self) -> None:
        """Scale nothing; the generation is over."""
        self._first, self._length, self.on = None, 0, False

    on = False

    def z(self, layer: int, z: Float[Tensor, "row pos head d_head"]) -> Tensor | None:
        """The heads' outputs with the chosen heads scaled; None where nothing changes."""
        chosen = self._heads.get(layer)
        if not self.on or chosen is None:
            return None
        # Cloned: in one product the model's own tensor would be written over.
        z = z.clone()
        z[:, :, chosen] = torch.where(self._where(z)[:, :, None, None], z[:, :, chosen] * self._factor, z[:, :, chosen])
        return z

    def neurons(self, layer: int, neurons: Float[Tensor, "row pos neuron"]) -> Tensor | None:
        """The MLP's neurons with the chosen ones scaled; None where nothing changes."""
        chosen = self._neurons.get(layer)
        if not self.on or chosen is None:
            return None
        neurons = neurons.clone()
        scaled = neurons[:, :, chosen]
        neurons[:, :, chosen] = torch.where(self._where(neurons)[:, :, None], scaled * self._factor, scaled)
        return neurons

    def _where(self, activation: Tensor) -> Bool[Tensor, "row pos"]:
        """Positions at or after each row's first; a forward without kept keys and values runs all of them again."""
        assert self._first is not None
        stop = self._length
        positions = torch.arange(stop - activation.shape[1], stop, device=activation.device)
        return positions >= self._first[:, None]


def _by_layer(units: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for layer, unit in units:
        found.setdefault(layer, []).append(unit)
    return found
