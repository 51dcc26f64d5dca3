"""Fine-tuning by adapters: small weights beside those of a frozen backbone."""
