"""Configurations of fine-tuning: written after a look at a folder of chips, or copied from those that ship."""
