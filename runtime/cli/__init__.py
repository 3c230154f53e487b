"""What the command lines of all packages have in common, and what ``rd-stream`` reads and writes."""
