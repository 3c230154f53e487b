"""What runs on the device: streams and utterances driven and timed, sensors read, samples kept."""
