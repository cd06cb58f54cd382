"""A student's files for a device."""
