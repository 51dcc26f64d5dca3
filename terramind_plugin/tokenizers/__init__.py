"""Tokenizers, which convert images and coordinates to token ids and back."""
