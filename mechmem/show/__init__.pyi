from .attention_view import attention as attention
from .chart import Chart as Chart
from .heads_view import heads as heads
from .history_view import history as history
from .picture import Picture as Picture
from .plotly_script import load_plotly as load_plotly
from .rare_view import rare_tokens as rare_tokens
from .scores_view import scores as scores
