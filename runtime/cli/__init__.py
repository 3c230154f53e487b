"""What the command lines of all rooms have in common, and what ``rd-stream`` reads and writes."""
