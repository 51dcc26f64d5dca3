"""Fine-tuned tasks over whole scenes."""
