"""Which values of heads the NLL of one memorized paragraph depends on.

    python experiments/activation_gradients.py     # a few seconds; writes results/activation_gradients

Stoehr et al. (2024, section 5 and figure 6) show d NLL / d activation by head, the largest over d_head, where layer 1
head 2 of GPT-Neo 125M stands out. One paragraph is an example: nothing here says what holds for others.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xarray as xr
from inputs import Inputs, open_inputs, start, token_texts
from outputs import save
from samples import by_em

import mechmem as mm
from mechmem.data.bounds import Count, Seed
from mechmem.model.load import HookedTransformer
from mechmem.report.position_maps import position_heatmap
from mechmem.show.charts.heatmap_figures import head_heatmap
from mechmem.study.stages import top_heads


@dataclass(frozen=True)
class Settings(Inputs):
    """What decides the numbers.

    Attributes:
        seed: draws candidates; the first memorized one is taken.
        candidates: paragraphs that are scored, at random.
        site: which activation: q, k, v or z.
        out: folder of the result and the figure.
    """

    seed: Seed = 0
    candidates: Count = 100
    site: str = "v"
    out: Path = Path("results/activation_gradients")


def main(settings: Settings, model: HookedTransformer | None = None) -> xr.Dataset:
    """Take the gradients of one paragraph.

    Args:
        settings: what decides the numbers.
        model: the model, if it is loaded already.

    Returns:
        gradient [layer, head, pos], largest |gradient| over d_head in nats per token per unit of activation; largest
        [layer, head], over positions; strongest_pos [layer, head], where; token [pos]. Attributes: paragraph_id, and
        strongest_layer, strongest_head.
    """
    model, shipped = open_inputs(settings, model)
    found = by_em(model, shipped, {"memorized": (50, 50)}, candidates=settings.candidates, each=1, seed=settings.seed)
    paragraphs = found["memorized"]
    gradient = mm.activation_gradients(model, paragraphs, site=settings.site)
    largest = gradient.max("pos", keep_attrs=True)
    layer, head = top_heads(largest, 1)[0]
    tokens = token_texts(model, paragraphs.tokens[0])
    result = xr.Dataset(
        {
            "gradient": gradient,
            "largest": largest,
            "strongest_pos": gradient.argmax("pos").assign_attrs(units="token position"),
            "token": ("pos", np.array(tokens, dtype=object)),
        },
        attrs={"paragraph_id": paragraphs.ids[0].item(), "strongest_layer": layer, "strongest_head": head},
    )
    text = "".join(tokens[: paragraphs.prefix_len])
    print(f"paragraph {result.attrs['paragraph_id']}, NLL {float(mm.score(model, paragraphs).nll[0]):.3g}: {text!r}")
    for place in top_heads(largest, 5):
        pos = int(result.strongest_pos.values[place])
        print(f"L{place[0]}H{place[1]}: {float(largest.values[place]):.3g} at position {pos}, {tokens[pos]!r}")
    unit = "nats per token per unit"
    heads = head_heatmap(largest, title=f"Largest |gradient| at {settings.site} by head", unit=unit, top=5)
    # Gradients of memorized text are too small for three digits behind the point.
    heads.update_traces(hovertemplate="%{y}%{x}: %{z:.3g}<extra></extra>")
    positions = position_heatmap(
        gradient.sel(layer=layer),
        title=f"|gradient| at {settings.site} of layer {layer} by token (brighter = the NLL depends more on it)",
        unit=unit,
        kind="sequential",
        tokens=tokens,
    )
    save(result, [heads, positions], settings)
    return result


if __name__ == "__main__":
    start(main, Settings, __doc__)
