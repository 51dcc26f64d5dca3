"""What a way of fine-tuning gives, and what it costs."""
