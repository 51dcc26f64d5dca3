"""From images, coordinates and captions to token ids and back."""
