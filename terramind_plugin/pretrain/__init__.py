"""Pre-training: tokenizers, stored tokens, masked modelling."""
