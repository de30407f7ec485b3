"""What people are shown of a server, and how whoever waits is told."""
