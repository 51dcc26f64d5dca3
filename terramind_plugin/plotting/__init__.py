"""Pictures of modalities, labels and predictions, and the panels, legends and colour bars around them."""

from terramind_plugin.plotting.pictures import plot_modality as plot_modality
