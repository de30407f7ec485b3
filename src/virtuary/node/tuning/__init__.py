"""What a machine is given while it runs."""
