"""Playing Atari games: environments, rollouts and evaluation."""
