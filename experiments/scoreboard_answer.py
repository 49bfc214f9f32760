"""What the scoreboard says: which localizer to use, from its numbers."""

import xarray as xr
from scoreboard_heads import YARDSTICK
from scoreboard_tables import AT, EXACT, said

from mechmem.localize.scoreboard import DROPPED, PROTOCOLS

# A method is quick below this share of the exact method's time.
QUICK = 0.01


def answer(injected: xr.Dataset, heads: xr.Dataset, deleted: xr.Dataset) -> list[str]:
    """One sentence or two for neurons, heads, weights and removal.

    Args:
        injected: the boards of INJ, [protocol, ...].
        heads: the board of paragraphs injected into heads.
        deleted: the board of DEL.
    """
    return [
        "## Which localizer to use",
        "",
        *neurons(injected),
        *of_heads(heads),
        *weights(injected),
        *removal(deleted),
    ]


def neurons(injected: xr.Dataset) -> list[str]:
    """The best of all and of the quick ones, by the mean recall at 5 % over both protocols."""
    recall = injected.recall.sel(fraction=AT)
    lines = [f"- **Neurons**: {_neurons(injected, recall, _best(recall.mean(['protocol', 'target'])))}."]
    if EXACT in injected.method.values:
        share = _share(injected.seconds, "method", EXACT)
        quick = share.method.values[share.values < QUICK]
        if len(quick):
            best = _best(recall.sel({"method": quick}).mean(["protocol", "target"]))
            lines.append(
                f"- **Neurons, quickly**, in less than {QUICK} of {EXACT}'s time: {_neurons(injected, recall, best)}."
            )
    return lines


def _neurons(injected: xr.Dataset, recall: xr.DataArray, name: str) -> str:
    whole, theirs = (said(recall.sel({"method": name, "protocol": one}), 1, 100) for one in PROTOCOLS)
    words = f"`{name}` finds {whole} % of whole neurons in the best 5 % of the model, and {theirs} % of out-weights in "
    words += "the best 5 % of every layer"
    if EXACT in injected.method.values and name != EXACT:
        exact = [said(recall.sel({"method": EXACT, "protocol": one}), 1, 100) for one in PROTOCOLS]
        share = float(_share(injected.seconds, "method", EXACT).sel({"method": name}))
        words += f"; it takes {share:.2g} of the time of {EXACT}, which finds {exact[0]} % and {exact[1]} %"
    return words


def of_heads(heads: xr.Dataset) -> list[str]:
    """The best by AUROC, and all whose mean is as high in a smaller share of the yardstick's time."""
    area = heads.head_auroc.mean("target")
    best = str(area.head_method.values[area.values.argmax()])
    words = f"- **Heads**: {_head(heads, best)}"
    if YARDSTICK in heads.head_method.values:
        share = _share(heads.head_seconds, "head_method", YARDSTICK)
        quick = [name for name in share.head_method.values if float(share.sel(head_method=name)) < 0.5]
        quick = [name for name in quick if name != "random"]
        if quick and best not in quick:
            rest = area.sel(head_method=quick)
            second = str(rest.head_method.values[rest.values.argmax()])
            words += f"; in less than half of zero ablation's time, {_head(heads, second)}"
    return [f"{words}."]


def _head(heads: xr.Dataset, name: str) -> str:
    row = heads.sel(head_method=name)
    recall = said(row.head_recall.sel(taken=1), 1, 100)
    return f"`{name}` has AUROC {said(row.head_auroc, 3)}, and {recall} % of the drawn heads come first"


def weights(injected: xr.Dataset) -> list[str]:
    """The best contrast for single weights, by protocol."""
    parts = []
    for protocol in PROTOCOLS:
        area = injected.weight_auroc.sel(protocol=protocol)
        best = str(area.contrast.values[area.mean("target").values.argmax()])
        parts.append(f"{said(area.sel(contrast=best), 3)} for {protocol} (`{best}`)")
    return [f"- **Single weights**: the best contrastive gradient has AUROC {' and '.join(parts)}; 0.5 is chance."]


def removal(deleted: xr.Dataset) -> list[str]:
    """Which method's neurons cost the target most, and which the target more than other memories."""
    board = deleted.sel(dropped=DROPPED[-1])
    target, apart = board.target_accuracy, board.target_accuracy - board.other_accuracy
    most, selective = (str(each.method.values[each.mean("target").values.argmin()]) for each in (target, apart))
    one, two = (board.sel({"method": name}) for name in (most, selective))
    points = [
        said(each, 1, within=(-100, 100))
        for each in (one.target_accuracy, one.other_accuracy, two.target_accuracy, two.other_accuracy)
    ]
    return [
        f"- **To remove** by dropping {100 * DROPPED[-1]:.1f} % of the neurons: `{most}` costs the target most, "
        f"{points[0]} points of accuracy, and other memories {points[1]}; the target loses most beyond what others "
        f"lose with `{selective}`: {points[2]} points against {points[3]}.",
        "",
    ]


def _best(values: xr.DataArray) -> str:
    return str(values.method.values[values.values.argmax()])


def _share(seconds: xr.DataArray, name: str, yardstick: str) -> xr.DataArray:
    """Each method's time as a share of another's on the same target, its median."""
    ratio = seconds / seconds.sel({name: yardstick}, drop=True)
    return ratio.median([dim for dim in ratio.dims if dim != name])
