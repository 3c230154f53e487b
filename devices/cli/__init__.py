"""The command line of ``rd-latency``: options, what each command does, and the reports that it writes."""
