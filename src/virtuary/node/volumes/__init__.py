"""Volumes: disks that are attached to a server and detached while it runs."""
