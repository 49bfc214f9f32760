"""One look for every figure: colours that colour-blind readers can tell apart, light and dark, and safe text."""

import plotly.graph_objects as go

# Okabe and Ito's colours, a little lightened so that they hold on white and on near-black alike.
COLOURS = {
    "memorized": "#1f83c4",
    "targets": "#1f83c4",
    "held-out memorized": "#6fc0ee",
    "between": "#9aa3ad",
    "other": "#e58a1f",
    "never seen": "#c779a8",
}
# The original model, then the edits in their order.
EDIT_COLOURS = ("#9aa3ad", "#1f83c4", "#12a17c", "#e58a1f", "#c779a8", "#8d6fc9", "#b8a411")
# A shape as well as a colour for each edit, for readers who cannot tell the colours apart.
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "star")
SPARE_COLOURS = ("#12a17c", "#c779a8", "#b8a411", "#8d6fc9", "#7a8691")
SEQUENTIAL = "Cividis"
# Neutral in the middle, so that the eye finds what is away from zero; never red against green.
DIVERGING = [[0.0, "#b35806"], [0.25, "#f0b26b"], [0.5, "#f3f4f6"], [0.75, "#74b3de"], [1.0, "#0b5a94"]]
FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
LABEL_LIMIT = 48


def colour(name: str, position: int = 0) -> str:
    """The colour that belongs to a set, or a spare one by position for a name not known here."""
    return COLOURS.get(name) or SPARE_COLOURS[position % len(SPARE_COLOURS)]


def edit_colour(position: int) -> str:
    """The colour of an edit by its place; the first is the original model's grey."""
    return EDIT_COLOURS[position % len(EDIT_COLOURS)]


def plotly_text(text: object, limit: int = LABEL_LIMIT) -> str:
    """Text from outside, as plotly will show it letter by letter.

    Plotly reads labels as a small HTML: `<b>` and `<a href>` act, and entities are decoded. So `&`, `<` and `>` become
    entities, line ends become spaces and what is longer than `limit` characters is cut.
    """
    line = " ".join(str(text).split())
    line = line if len(line) <= limit else line[: limit - 1] + "…"
    return line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def page_colour(*, dark: bool = False) -> str:
    """The page's own colour, under a picture."""
    return "#151a20" if dark else "#ffffff"


def template(*, dark: bool = False) -> go.layout.Template:
    """The plotly template of the report, for a light or a dark page; the background is the page's own."""
    dark_page, light_page = ("#d5dbe3", "#7d8895", "#333b46", "#20262e"), ("#2b333d", "#98a3b0", "#e6e9ee", "#ffffff")
    ink, quiet, faint, card = dark_page if dark else light_page
    axis = {
        "automargin": True,
        "gridcolor": faint,
        "linecolor": faint,
        "tickcolor": faint,
        "zerolinecolor": faint,
        "ticks": "outside",
        "title": {"standoff": 10, "font": {"size": 13}},
    }
    return go.layout.Template(
        layout={
            "font": {"family": FONT, "size": 13, "color": ink},
            "title": {"font": {"size": 16}, "x": 0, "xref": "paper", "xanchor": "left"},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 56, "r": 16, "t": 64, "b": 48},
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"},
            "hoverlabel": {"bgcolor": card, "bordercolor": faint, "font": {"family": FONT, "color": ink}},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": quiet, "activecolor": ink},
            "bargap": 0.18,
        }
    )


def colorbar(title: str) -> dict[str, object]:
    """A thin colour bar whose title runs along its side, so that it costs little width on a phone."""
    return {
        "title": {"text": title, "side": "right", "font": {"size": 12}},
        "thickness": 10,
        "outlinewidth": 0,
        "len": 1.0,
    }


def empty_figure(title: str, height: int) -> go.Figure:
    """A figure in the light template, `height` pixels high."""
    return go.Figure(layout={"template": template(), "title": title, "height": height})
