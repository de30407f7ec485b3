"""How a guest becomes who it is to be."""
