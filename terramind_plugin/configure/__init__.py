"""Configurations of fine-tuning: written for a folder of chips, or copied from those that ship."""
