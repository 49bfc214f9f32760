"""From two sets of paragraphs to a detector."""
