"""``make demo``: every package once, through its own command line, and a report of what came out."""
