"""Builders of everything that is registered: backbones, tokenizers and generators with their weights."""
