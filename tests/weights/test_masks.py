import inspect

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mechmem.data.errors import InputError
from mechmem.model.sites import editable_parameters
from mechmem.weights.masks import Mask


def scores(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) for name, shape in {"b": (7, 11), "a": (13,), "c": (3, 5)}.items()
    }


@pytest.mark.parametrize("fraction", [0.001, 0.05, 0.5, 1.0])
def test_top_takes_the_largest_absolute_scores_of_all_tensors(fraction):
    weights = scores()
    mask = Mask.top(weights, fraction=fraction)
    need = max(1, round(fraction * 105))
    assert mask.count == need and mask.total == 105
    everything = sorted(
        ((abs(float(v)), n, i) for n in weights for i, v in enumerate(weights[n].flatten())), reverse=True
    )
    expected = {(name, index) for _, name, index in everything[:need]}
    assert {(n, i) for n, indices in mask.indices.items() for i in indices.tolist()} == expected


def test_ties_go_to_the_first_by_name_and_index():
    mask = Mask.top({"b": torch.ones(4), "a": -torch.ones(3)}, fraction=5 / 7)
    assert {n: i.tolist() for n, i in mask.indices.items()} == {"a": [0, 1, 2], "b": [0, 1]}


def test_random_like_has_the_same_count_in_every_tensor_and_other_weights():
    mask = Mask.top(scores(), fraction=0.2)
    random = [Mask.random_like(mask, seed=seed) for seed in range(40)]
    for control in random:
        assert {n: len(i) for n, i in control.indices.items()} == {n: len(i) for n, i in mask.indices.items()}
    assert Mask.random_like(mask, seed=3).indices["b"].tolist() == random[3].indices["b"].tolist()
    # Uniform: over seeds every weight of a tensor is drawn about equally often.
    drawn = np.bincount(np.concatenate([control.indices["b"].numpy() for control in random]), minlength=77)
    expected = 40 * len(mask.indices["b"]) / 77
    assert abs(drawn[mask.indices["b"].numpy()].mean() - expected) < 0.25 * expected


def test_union_intersection_and_overlap_are_those_of_sets():
    one, two = Mask.top(scores(0), fraction=0.3), Mask.top(scores(1), fraction=0.4)
    a, b = ({(n, i) for n, v in m.indices.items() for i in v.tolist()} for m in (one, two))
    assert {(n, i) for n, v in one.union(two).indices.items() for i in v.tolist()} == a | b
    assert {(n, i) for n, v in one.intersection(two).indices.items() for i in v.tolist()} == a & b
    assert one.overlap(two) == pytest.approx(len(a & b) / len(a | b))
    assert one.overlap(one) == 1.0


def test_save_and_load(tmp_path):
    mask = Mask.top(scores(), fraction=0.1)
    mask.save(tmp_path / "m.safetensors")
    read = Mask.load(tmp_path / "m.safetensors")
    assert dict(read.shapes) == dict(mask.shapes)
    assert {n: i.tolist() for n, i in read.indices.items()} == {n: i.tolist() for n, i in mask.indices.items()}


PLACES = {
    "blocks.0.attn.W_Q": (3, 5, 2), "blocks.0.attn.W_O": (3, 2, 5), "blocks.0.mlp.W_in": (5, 7),
    "blocks.1.attn.W_Q": (3, 5, 2), "blocks.1.attn.W_O": (3, 2, 5), "blocks.1.mlp.W_in": (5, 7),
    "blocks.10.attn.W_Q": (3, 5, 2), "blocks.10.attn.W_O": (3, 2, 5), "blocks.10.mlp.W_in": (5, 7),
}  # fmt: skip
Place = tuple[str, int]


def placed(kind: str = "normal") -> dict[str, torch.Tensor]:
    """Scores by place, those of later layers larger, so that one group would take what is another's."""
    generator = torch.Generator().manual_seed(3)
    values: dict[str, torch.Tensor] = {}
    for number, (name, shape) in enumerate(PLACES.items()):
        drawn = torch.randn(shape, generator=generator) * (1 + number)
        values[name] = drawn.round() if kind == "ties" else drawn.to(torch.bfloat16) if kind == "bfloat16" else drawn
    return values


def members(mask: Mask) -> set[Place]:
    return {(name, index) for name, indices in mask.indices.items() for index in indices.tolist()}


def allowed(name: str, index: int, layers=None, heads=None, parameters=None) -> bool:
    _, layer, stage, letter = name.split(".")
    shape = PLACES[name]
    head = np.unravel_index(index, shape)[0]
    return (
        (layers is None or int(layer) in layers)
        and (heads is None or (stage == "attn" and (int(layer), head) in heads))
        and (parameters is None or letter in parameters or name in parameters)
    )


@pytest.mark.parametrize("kind", ["normal", "ties", "bfloat16"])
@pytest.mark.parametrize("per", ["model", "tensor", "component"])
@pytest.mark.parametrize(
    "places",
    [
        {},
        {"layers": [1, 10]},
        {"heads": [(10, 2), (0, 0), (0, 2)]},
        {"parameters": ["W_in", "blocks.0.attn.W_O"]},
        {"layers": [0, 1], "heads": [(1, 1), (0, 0)], "parameters": ["W_Q"]},
    ],
    ids=["all", "layers", "heads", "parameters", "together"],
)
@pytest.mark.parametrize("fraction", [0.001, 0.13, 0.5, 1.0])
def test_top_ranks_each_group_by_itself_among_the_places_asked_for(kind, per, places, fraction):
    """Slow oracle: Python's sort of single weights."""
    weights = placed(kind)
    key = {"model": lambda _: 0, "tensor": lambda name: name, "component": lambda name: name.split(".")[-1]}[per]
    groups: dict[object, list[tuple[float, str, int]]] = {}
    for name, value in weights.items():
        for index, score in enumerate(value.flatten().tolist()):
            if allowed(name, index, **places):
                groups.setdefault(key(name), []).append((-abs(score), name, index))
    need = set()
    for group in groups.values():
        need |= {(name, index) for _, name, index in sorted(group)[: max(1, round(fraction * len(group)))]}
    mask = Mask.top(weights, fraction=fraction, per=per, **places)
    assert members(mask) == need and dict(mask.shapes) == dict(sorted(PLACES.items()))
    assert mask.total == sum(value.numel() for value in weights.values())
    assert (mask.count == mask.total) == (fraction == 1.0 and not places)


def test_groups_matter():
    """Control: ranked together, the loud last layers take everything; by tensor every tensor has its share."""
    weights = placed()
    together, apart = Mask.top(weights, fraction=0.1), Mask.top(weights, fraction=0.1, per="tensor")
    assert "blocks.0.attn.W_Q" not in together.indices and set(apart.indices) == set(PLACES)
    assert {len(apart.indices[name]) for name in PLACES} == {3, 4}


def test_extreme_scores_keep_their_order():
    values = torch.tensor([0.0, -0.0, 1e-45, -3e-45, 1e-38, -1.0, 3e38, -torch.inf])
    # Of the two zeros the first is taken first, whatever its sign.
    order = [7, 6, 5, 4, 3, 2, 0, 1]
    for count in range(1, 9):
        mask = Mask.top({"a": values}, fraction=count / 8)
        assert mask.indices["a"].tolist() == sorted(order[:count])


def test_a_large_choice_with_many_ties_is_that_of_a_stable_sort():
    scores = torch.randint(-50, 50, (211, 307), generator=torch.Generator().manual_seed(4)).float() / 7
    order = np.argsort(-scores.abs().flatten().numpy(), kind="stable")
    for count in (1, 1000, 40_000):
        mask = Mask.top({"a": scores}, fraction=count / scores.numel())
        assert mask.indices["a"].tolist() == sorted(order[:count].tolist())


def test_scores_are_left_as_they_are_and_need_not_be_contiguous():
    scores = torch.randn(7, 11, generator=torch.Generator().manual_seed(5)).requires_grad_()
    before = scores.detach().clone()
    turned = Mask.top({"a": scores.T}, fraction=0.2)
    assert turned.indices["a"].tolist() == Mask.top({"a": before.T.contiguous()}, fraction=0.2).indices["a"].tolist()
    assert torch.equal(scores.detach(), before) and scores.grad is None


def test_the_complement_is_everything_else():
    mask = Mask.top(scores(), fraction=0.3)
    rest = mask.complement()
    everything = mask.union(rest)
    assert mask.intersection(rest).count == 0 and everything.count == everything.total == mask.total
    assert members(rest.complement()) == members(mask)
    assert everything.complement().count == 0 and members(everything.complement().complement()) == members(everything)


def test_restricted_masks_can_be_united_with_others(tiny_model):
    weights = {name: parameter.detach() for name, parameter in editable_parameters(tiny_model).items()}
    head = Mask.heads(tiny_model, [(1, 2)])
    # All weights of a head, chosen by score, are that head; a fraction of them lies inside it.
    assert members(Mask.top(weights, fraction=1.0, heads=[(1, 2)])) == members(head)
    some = Mask.top(weights, fraction=0.25, heads=[(1, 2)])
    assert some.count == head.count // 4 and some.intersection(head).count == some.count
    assert some.intersection(Mask.heads(tiny_model, [(1, 0)])).count == 0
    assert some.union(Mask.neurons(tiny_model, [(0, 1)])).count == some.count + 2 * tiny_model.cfg.d_model


def test_a_mask_is_loaded_for_the_model_it_is_of_alone(tiny_model, small_model, tmp_path):
    path = tmp_path / "m.safetensors"
    Mask.heads(tiny_model, [(1, 2)]).save(path)
    assert members(Mask.load(path, tiny_model)) == members(Mask.heads(tiny_model, [(1, 2)]))
    with pytest.raises(InputError, match=r"'blocks.*' has shape .* and the model's .*; the mask is of another model"):
        Mask.load(path, small_model())
    # A model of two layers whose shapes are all found among those of four.
    fewer = {n: s for n, s in Mask.heads(tiny_model, [(1, 2)]).shapes.items() if n.startswith(("blocks.0", "blocks.1"))}
    Mask({"blocks.0.attn.W_Q": torch.tensor([1])}, fewer).save(path)
    with pytest.raises(InputError, match="no shape for 'blocks.2.attn.W_K', which the model has"):
        Mask.load(path, tiny_model)
    assert Mask.load(path).count == 1


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"layers": [1, 7]}, r"got layers \[7\]; need at least one, among those"),
        ({"layers": []}, r"got layers \[\]"),
        ({"heads": [(0, 3)]}, r"got heads \[\(0, 3\)\]"),
        ({"layers": [0], "heads": [(0, 1), (1, 1)]}, r"got heads \[\(1, 1\)\]"),
        ({"parameters": ["W_V"]}, r"got parameters \['W_V'\]"),
        ({"heads": [(0, 1)], "parameters": ["W_in"]}, "have no weight in common"),
    ],
)
def test_places_that_are_not_there_are_refused(asked, said):
    with pytest.raises(InputError, match=said):
        Mask.top(placed(), fraction=0.1, **asked)


def test_an_unknown_group_is_refused():
    with pytest.raises(InputError, match="got per 'head'; need one of model, tensor, component"):
        Mask.top(placed(), fraction=0.1, per="head")  # pyright: ignore[reportArgumentType]


def test_bad_masks_are_refused(tmp_path):
    with pytest.raises(InputError, match="got 0.0 as fraction; need a finite number above 0"):
        Mask.top(scores(), fraction=0.0)
    with pytest.raises(InputError, match="scores of 'a' hold NaN"):
        Mask.top({"a": torch.tensor([1.0, float("nan")])}, fraction=0.5)
    with pytest.raises(InputError, match="sorted, distinct and within 0..5"):
        Mask({"a": torch.tensor([2, 2])}, {"a": (6,)})
    with pytest.raises(InputError, match="sorted, distinct and within 0..5"):
        Mask({"a": torch.tensor([2, 6])}, {"a": (6,)})
    with pytest.raises(InputError, match="no shape"):
        Mask({"a": torch.tensor([2])}, {})
    with pytest.raises(InputError, match="different names or shapes"):
        Mask.top(scores(), fraction=0.5).union(Mask.top({"a": torch.ones(3)}, fraction=0.5))
    with pytest.raises(InputError, match="none.safetensors: no such file"):
        Mask.load(tmp_path / "none.safetensors")
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(InputError, match="not a whole safetensors file"):
        Mask.load(tmp_path / "cut.safetensors")
    save_file({"weight": torch.ones(2)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="holds the tensor 'weight', which is none of indices.NAME, shape.NAME"):
        Mask.load(tmp_path / "model.safetensors")


@pytest.mark.parametrize("wrong", [1.5, True, "1", None, float("nan")])
def test_neurons_and_heads_are_pairs_of_whole_numbers(tiny_model, wrong):
    for make in (Mask.neurons, Mask.heads):
        with pytest.raises(InputError, match="as layer; need a whole number"):
            # Without the checks of annotations that tests switch on, as a user meets it.
            inspect.unwrap(make)(tiny_model, [(wrong, 0)])  # pyright: ignore[reportArgumentType]
