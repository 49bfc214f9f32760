from .attention_view import attention as attention
from .chart import Chart as Chart
from .picture import Picture as Picture
from .plotly_script import load_plotly as load_plotly
