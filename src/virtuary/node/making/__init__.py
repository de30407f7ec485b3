"""Loops that make documents true that are no servers: images and networks."""
