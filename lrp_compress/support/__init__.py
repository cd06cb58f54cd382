"""What everything else stands on: errors, files, processes, names, seeds."""
