from .data.paragraphs import Paragraphs as Paragraphs
