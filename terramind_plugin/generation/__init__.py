"""From images, coordinates and tokens of some modalities to those of others: schedules, sampling, generator."""
