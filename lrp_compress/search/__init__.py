"""Studies: Optuna searches how to prune and distil for the best trade-off of an agent's return against its cost."""
