"""Images and coordinates to token ids and back."""
