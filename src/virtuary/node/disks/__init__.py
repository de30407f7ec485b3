"""The disk of a server, and what else lies beside it."""
