"""Games: emulators, and agents that act in them."""
