"""Which servers go onto which hosts. Pure, but for `__main__`, which is a process of its own."""

PROBLEM = 3
"""Exit status of that process when its output is a problem and not a plan."""
