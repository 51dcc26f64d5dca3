"""The published model: table of modalities, variants, inputs, layers, embeddings, encoder, decoder and weights."""
