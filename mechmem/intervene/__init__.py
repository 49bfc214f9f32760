"""What happens when a memory is removed."""
