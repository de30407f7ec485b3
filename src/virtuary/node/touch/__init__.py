"""What the API may ask of this host besides documents, and nothing else."""
