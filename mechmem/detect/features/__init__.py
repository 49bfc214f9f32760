"""What a step of decoding shows, as numbers."""
