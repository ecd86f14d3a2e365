"""From the bytes of a recording to a picture: decoding, log-mel spectrograms, SpecAugment."""
