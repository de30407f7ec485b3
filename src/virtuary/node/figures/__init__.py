"""What the host and its servers use, measured."""
