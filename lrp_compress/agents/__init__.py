"""Policy networks, their files, and where trained agents come from."""
