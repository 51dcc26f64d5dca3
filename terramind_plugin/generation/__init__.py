"""Generation of modalities from other modalities: schedules, sampling, generators of tokens and of images."""
