"""What a student costs on a device."""
