"""What a network costs on a device: size, operations and latency."""
