"""Text coloured by numbers of its tokens, and what models write."""
