"""Charts: plotly figures that a notebook shows offline."""
