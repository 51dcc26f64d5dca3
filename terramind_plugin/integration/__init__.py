"""Integration with TerraTorch and Lightning: registries, necks, decoders, callbacks, command line."""
