"""Updates that leave a keep set's activations alone: projected onto the null space of its inputs."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.data.errors import InputError
from mechmem.data.paragraphs import Paragraphs
from mechmem.model.lean.input_moments import input_moments
from mechmem.model.load import HookedTransformer

# Eigenvalues below this share of the largest are rounding.
RANK = 1e-12


class NullSpace:
    """For every weight matrix the input directions that a keep set uses; updates lose their part in them.

    In the manner of AlphaEdit (Fang et al. 2025, arXiv 2410.02355), which projects one computed update; here it is that
    of every training step, after the optimizer:

    1. C = mean of x x^T over all tokens of the keep set, x what goes into the matrix in the original model.
    2. U: the eigenvectors of C with the largest eigenvalues, as few as carry `share` of its trace; for share 1 all
       whose eigenvalue is not zero.
    3. An update D [d_in, d_out] becomes D - U U^T D, so that x D = 0 for every x in the span of U.

    With share 1 the keep set's outputs of every matrix do not move, so the model computes the same on the keep set, to
    rounding. With a smaller share, what moves is at most the mean square 1 - share of its inputs.

    Through a mask, D has the chosen weights alone, and the result is cut back to them: the mask wins. If the mask
    chooses a column (all inputs of an output) wholly or not at all, nothing is lost. If it chooses some inputs of an
    output, its outputs on the keep set do move, but never more (in the sum of squares over U) than without projection.

    Raises:
        InputError: the keep set uses every input of every matrix, so that no update would be left.
    """

    def __init__(self, model: HookedTransformer, keep: Paragraphs, names: list[str], share: float) -> None:
        self._bases: dict[str, Float[Tensor, "d_in used"]] = {}
        known: dict[int, Tensor] = {}
        for name, moment in input_moments(model, keep.tokens, names).items():
            # W_Q, W_K and W_V share their inputs.
            if id(moment) not in known:
                known[id(moment)] = used_directions(moment, share).to(model.W_E.dtype)
            self._bases[name] = known[id(moment)]
        if all(basis.shape[0] == basis.shape[1] for basis in self._bases.values()):
            raise InputError(
                f"got null_space {share:g}, and the {keep.tokens.numel()} tokens of the keep set use every input of "
                "every matrix, so that nothing could move; need a smaller share (0.9 for example) or a smaller keep set"
            )

    def project(self, name: str, update: Tensor) -> Tensor:
        """A parameter's update without its part in the directions that are used; the shape is the parameter's."""
        basis, matrix = self._bases[name], _inputs_first(name, update)
        left = matrix - basis @ (basis.T @ matrix)
        return _as_parameter(name, left, update.shape)

    def project_chosen(
        self, name: str, update: Float[Tensor, " chosen"], index: Int[Tensor, " chosen"], shape: tuple[int, ...]
    ) -> Float[Tensor, " chosen"]:
        """The same for the chosen weights of a parameter; the others' update is zero, and stays so."""
        whole = update.new_zeros(shape)
        whole.view(-1)[index] = update
        return self.project(name, whole).reshape(-1)[index]

    @property
    def used(self) -> Mapping[str, int]:
        """How many input directions each parameter's updates lose."""
        return {name: basis.shape[1] for name, basis in self._bases.items()}


def used_directions(moment: Float[Tensor, "d_in d_in"], share: float) -> Float[Tensor, "d_in used"]:
    """The eigenvectors of a second moment that carry a share of its trace, the largest first."""
    values, vectors = torch.linalg.eigh(moment)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    rank = int((values > RANK * values[0]).sum())
    if share < 1:
        carried = values.cumsum(0) / values.sum()
        rank = min(rank, int((carried < share).sum()) + 1)
    return vectors[:, :rank]


def _inputs_first(name: str, update: Tensor) -> Float[Tensor, "d_in d_out"]:
    """A parameter [head, d_model, d_head], [head, d_head, d_model] (W_O) or [d_in, d_out] as a matrix of its inputs."""
    if update.ndim == 2:
        return update
    return update.flatten(0, 1) if name.endswith("W_O") else update.transpose(0, 1).flatten(1)


def _as_parameter(name: str, matrix: Float[Tensor, "d_in d_out"], shape: torch.Size) -> Tensor:
    if len(shape) == 2 or name.endswith("W_O"):
        return matrix.reshape(shape)
    return matrix.view(shape[1], shape[0], shape[2]).transpose(0, 1)
