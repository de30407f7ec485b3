"""The memory of the whole host: who gives some up when it is short."""
