"""Reports of sweeps and studies: what many runs say together, as one page and one table."""
