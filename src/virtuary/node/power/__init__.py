"""Starting, stopping, pausing and removing servers, and what becomes of one that ended."""
