"""Servers made of other servers: as an overlay, in full, or live."""
