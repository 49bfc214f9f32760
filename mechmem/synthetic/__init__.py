"""The synthetic corpus: training text whose every repetition is known."""
