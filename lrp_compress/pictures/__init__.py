"""What is looked at: figures, videos, a window."""
