"""What joins the package to TerraTorch and Lightning: registries, necks, decoders, callbacks, command line."""
