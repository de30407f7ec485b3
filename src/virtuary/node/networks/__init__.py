"""The networks of this host: who is on them, their rules, addresses and bandwidth."""
