"""What a frozen model computed once and need not compute again: thoughts and features."""
