"""Pictures of modalities, labels and predictions, and the panels, legends and colour bars around them."""
