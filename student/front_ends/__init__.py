"""What turns samples into frames: convolutions, log-mel and Whisper's, Kaldi's filter bank."""
