from .attention_view import attention as attention
from .picture import Picture as Picture
