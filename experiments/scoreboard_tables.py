"""The tables and figures of the scoreboard's page."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from scoreboard_heads import YARDSTICK

import mechmem as mm
from mechmem.stats.ranges import ANY, SHARE, Range, change_of

# The exact method, whose time is 1, and the share of neurons at which methods are compared with it.
EXACT, AT = "zero_out", 0.05
# GPT-2 124M, recall in percent at 1, 2 and 5 % (Chang et al. 2024).
PUBLISHED = {
    "hard_concrete": (49.5, 70.2, 87.4),
    "slimming": (48.1, 66.7, 80.7),
    "zero_out": (24.9, 37.5, 53.8),
    "integrated": (20.5, 32.1, 49.9),
    "activations": (3.0, 5.2, 13.3),
    "random": (1.0, 2.0, 5.0),
}


def interval(values: np.ndarray, within: Range) -> tuple[float, float, float]:
    """Mean and the ends of its 95 % interval, within what it can be; every target is a cluster of its own."""
    if np.ptp(values) == 0:
        return float(values.mean()), float(values.mean()), float(values.mean())
    return float(values.mean()), *mm.cluster_bootstrap(values, np.arange(len(values)), within=within)


def said(values: xr.DataArray, digits: int = 2, factor: float = 1.0, within: Range = SHARE) -> str:
    """A mean and its interval, times a factor, as a table cell."""
    mean, low, high = (factor * number for number in interval(values.values, within))
    return f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def times(seconds: xr.DataArray, method: str, yardstick: str) -> tuple[str, list[str]]:
    """Each method's time: as a multiple of the yardstick's on the same target, its median over targets.

    Where the yardstick was not run, seconds.

    Args:
        seconds: [method, target], the first dimension of any name.
        method: that name.
        yardstick: whose time is 1.

    Returns:
        The head of the column, and its cells.
    """
    if yardstick not in seconds[method].values:
        return "seconds", [f"{value:.2g}" for value in seconds.median("target").values]
    ratio = (seconds / seconds.sel({method: yardstick}, drop=True)).median("target")
    return f"time, {yardstick.split(', ')[-1]} = 1", [f"{value:.2g}" for value in ratio.values]


def injection_table(board: xr.Dataset, published: bool) -> list[str]:
    """Recall, AUROC and time of one protocol, beside the published recall where the protocol is theirs."""
    exact = EXACT in board.method.values
    time, cells_of_time = times(board.seconds, "method", EXACT)
    head = [f"recall at {100 * at:.0f} %, %" for at in board["fraction"].values]
    head += [f"at 5 %, minus {EXACT}"] * exact + ["area, %", "AUROC", time] + ["published recall"] * published
    lines = ["| method | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for number, method in enumerate(board.method.values):
        row = board.sel({"method": method})
        cells = [said(row.recall.sel(fraction=at), 1, 100) for at in board["fraction"].values]
        if exact:
            less = row.recall.sel(fraction=AT) - board.recall.sel({"fraction": AT, "method": EXACT})
            cells.append(said(less, 1, 100, change_of(SHARE)))
        cells += [said(row.auprc, 1, 100), said(row.auroc, 3), cells_of_time[number]]
        if published:
            cells.append(" / ".join(f"{value:.1f}" for value in PUBLISHED.get(str(method), ())) or "–")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def goal(board: xr.Dataset) -> list[str]:
    """Which methods find nine tenths among the best 5 % in less than a tenth of the exact method's time."""
    if EXACT not in board.method.values:
        return []
    recall = board.recall.sel(fraction=AT)
    share = (board.seconds / board.seconds.sel({"method": EXACT}, drop=True)).median("target")
    met = [
        f"{method} ({said(recall.sel({'method': method}), 1, 100)} %, {float(share.sel({'method': method})):.2g} of "
        "the time)"
        for method in board.method.values
        if float(recall.sel({"method": method}).mean()) > 0.9 and float(share.sel({"method": method})) < 0.1
    ]
    return [
        f"Above 90 % recall at 5 % in less than a tenth of {EXACT}'s time: {', '.join(met) or 'no method'}.",
        "",
    ]


def head_table(board: xr.Dataset) -> list[str]:
    """Recall, AUROC and time of localizers of heads."""
    count = int(board.attrs["heads"])
    time, cells_of_time = times(board.head_seconds, "head_method", YARDSTICK)
    head = [f"recall in the best {count * many}, %" for many in board.taken.values] + ["AUROC", time]
    lines = ["| method | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for number, method in enumerate(board.head_method.values):
        row = board.sel(head_method=method)
        cells = [said(row.head_recall.sel(taken=many), 1, 100) for many in board.taken.values]
        cells += [said(row.head_auroc, 3), cells_of_time[number]]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def truth_table(truth: xr.Dataset, injected: xr.Dataset, heads: xr.Dataset) -> list[str]:
    """AUROC of every kind of localizer by every kind of truth."""
    protocols = [str(name) for name in injected.protocol.values]
    columns = ["hand-set", *(f"injected, {name}" for name in protocols), "injected, heads"]
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for method in heads.head_method.values:
        one = heads.sel(head_method=method)
        rows["head", str(method)] = {
            "hand-set": said(one.hand_set_auroc, 3),
            "injected, heads": said(one.head_auroc, 3),
        }
    for number in range(truth.sizes["row"]):
        row = truth.isel(row=number)
        rows[row.what.item(), row.method.item()] = {"hand-set": said(row.auroc, 3)}
    for protocol in protocols:
        board = injected.sel(protocol=protocol)
        for method in board.method.values:
            area = said(board.auroc.sel({"method": method}), 3)
            rows["neuron", f"localize_neurons, {method}"][f"injected, {protocol}"] = area
    for contrast in injected.contrast.values:
        row = rows["weight", f"contrastive_gradients, {contrast}"]
        weights = injected.weight_auroc.sel(contrast=contrast)
        row |= {f"injected, {name}": said(weights.sel(protocol=name), 3) for name in protocols}
        row["injected, heads"] = said(heads.head_weight_auroc.sel(contrast=contrast), 3)
    lines = [f"| what is ranked | by | {' | '.join(columns)} |", "|---|---|" + "---|" * len(columns)]
    for (what, by), cells in rows.items():
        lines.append(f"| {what} | {by} | {' | '.join(cells.get(name, '–') for name in columns)} |")
    return lines


def deletion_table(board: xr.Dataset) -> list[str]:
    """The cost of dropping neurons: for the target, other memories and other text."""
    lines = [
        "| method | dropped | target's accuracy | other memories' accuracy | target's edit distance | perplexity |",
        "|---|" + "---|" * 5,
    ]
    for method in board.method.values:
        for share in board.dropped.values:
            row = board.sel({"method": method, "dropped": share})
            cells = [said(row[name], within=(-100, 100)) for name in ("target_accuracy", "other_accuracy")]
            cells += [said(row.target_edit_distance, 1, within=ANY), said(row.perplexity, within=ANY)]
            lines.append(f"| {method} | {100 * share:.1f} % | " + " | ".join(cells) + " |")
    return lines


def draw(injected: xr.Dataset, deleted: xr.Dataset) -> list[go.Figure]:
    """Recall by method; accuracy lost on the target against accuracy lost on other memories."""
    names = [str(name) for name in injected.method.values]
    recalls, whole = go.Figure(), injected.sel(protocol="whole neurons")
    for at in injected["fraction"].values:
        found = [interval(whole.recall.sel({"method": name, "fraction": at}).values, SHARE) for name in names]
        mean, low, high = 100 * np.array(found).T
        error = {"type": "data", "symmetric": False, "array": high - mean, "arrayminus": mean - low, "thickness": 1}
        recalls.add_bar(x=names, y=mean, error_y=error, name=f"top {100 * at:.0f} %")
    recalls.update_layout(
        barmode="group", title="Recall of the injected neurons, in- and out-weights (higher is better)", height=460
    )
    recalls.update_yaxes(title="recall, %")
    lost = go.Figure()
    for share in deleted.dropped.values:
        at = deleted.sel(dropped=share).mean("target")
        lost.add_scatter(
            x=at.other_accuracy, y=at.target_accuracy, text=names, mode="markers+text", name=f"{100 * share:.1f} %",
            textposition="top center",
        )  # fmt: skip
    lost.update_layout(title="Accuracy lost by dropping neurons (best: bottom right)", height=460)
    lost.update_xaxes(title="other memories, percentage points")
    lost.update_yaxes(title="target, percentage points")
    return [recalls, lost]
