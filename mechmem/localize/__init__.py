"""Where in the network a memory sits."""
