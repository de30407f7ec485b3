"""Virtuary turns a Linux machine into a virtualization host."""

__version__ = "0.1.0"
