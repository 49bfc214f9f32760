"""Where in the network an activation is taken: the sites, by our names or by TransformerLens'."""

from __future__ import annotations

from typing import Literal, get_args

from transformer_lens import HookedTransformer

from mechmem.data.choices import check_choice
from mechmem.data.errors import InputError
from mechmem.model.lean.trace import HOOKS, NEURON_SITES

Site = Literal["resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "pattern", "mlp_post"]
# Those, and what can be read but not patched: scores before the softmax, and what each head writes.
CaptureSite = Literal[Site, "scores", "result"]
READ_ONLY = {"scores": "attn.hook_attn_scores", "result": "attn.hook_result"}
# TransformerLens' names: the whole hook point of a layer (attn.hook_z) and its last part (hook_z).
ALIASES = {alias: site for site, hook in (HOOKS | READ_ONLY).items() for alias in (hook, hook.rsplit(".", 1)[-1])}


def capture_site_of(model: HookedTransformer, site: str) -> CaptureSite:
    """As `site_of`, of the sites that `capture` reads.

    Raises:
        InputError: as `site_of`.
    """
    name = ALIASES.get(site, site)
    read_only: dict[str, CaptureSite] = {"scores": "scores", "result": "result"}
    if name in read_only:
        return read_only[name]
    check_choice("site", name, CaptureSite)
    return site_of(model, name)


def site_of(model: HookedTransformer, site: str) -> Site:
    """The site that a name stands for: `z`, `hook_z` and `attn.hook_z` are one.

    Raises:
        InputError: an unknown name, or a site that this model does not have.
    """
    name = ALIASES.get(site, site)
    check_choice("site", name, Site)
    if name == "resid_mid" and model.cfg.parallel_attn_mlp:
        raise InputError(
            "the model runs attention and MLP side by side, so it has no 'resid_mid'; need another site: attn_out or "
            "mlp_out"
        )
    if name in (*NEURON_SITES, "mlp_out", "resid_mid") and model.cfg.attn_only:
        raise InputError(f"the model has no MLPs, so it has no {name!r}; need another site: attn_out or z")
    known: dict[str, Site] = {each: each for each in get_args(Site)}
    return known[name]
