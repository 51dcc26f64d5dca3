"""Evaluation: fine-tuning methods compared, zero-shot maps, few-shot classification, locations."""
