"""Making a network smaller: relevance, criteria, pruning and distillation."""
