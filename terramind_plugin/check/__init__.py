"""`terramind check`: what is wrong with a configuration and its data, before training."""
