"""The tables and figures of the scoreboard's page."""

import numpy as np
import plotly.graph_objects as go
import xarray as xr

import mechmem as mm
from mechmem.stats.ranges import ANY, SHARE, Range

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


def injection_table(board: xr.Dataset, published: bool) -> list[str]:
    """Recall, AUROC and time of one protocol, beside the published recall where the protocol is theirs."""
    head = [f"recall at {100 * at:.0f} %, %" for at in board["fraction"].values] + ["area, %", "AUROC", "seconds"]
    head += ["published recall"] * published
    lines = ["| method | " + " | ".join(head) + " |", "|---|" + "---|" * len(head)]
    for method in board.method.values:
        row = board.sel({"method": method})
        cells = [said(row.recall.sel(fraction=at), 1, 100) for at in board["fraction"].values]
        cells += [said(row.auprc, 1, 100), said(row.auroc, 3), f"{float(row.seconds.median()):.1f}"]
        if published:
            cells.append(" / ".join(f"{value:.1f}" for value in PUBLISHED.get(str(method), ())) or "–")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def truth_table(truth: xr.Dataset, injected: xr.Dataset) -> list[str]:
    """AUROC of every kind of localizer where the answer is known."""
    lines = ["| truth | what is ranked | by | AUROC |", "|---|---|---|---|"]
    for number in range(truth.sizes["row"]):
        row = truth.isel(row=number)
        lines.append(f"| hand-set | {row.what.item()} | {row.method.item()} | {said(row.auroc, 3)} |")
    for protocol in injected.protocol.values:
        board = injected.sel(protocol=protocol)
        for method in board.method.values:
            area = said(board.auroc.sel({"method": method}), 3)
            lines.append(f"| injected, {protocol} | neuron | localize_neurons, {method} | {area} |")
        for contrast in board.contrast.values:
            area = said(board.weight_auroc.sel(contrast=contrast), 3)
            lines.append(f"| injected, {protocol} | weight | contrastive_gradients, {contrast} | {area} |")
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
