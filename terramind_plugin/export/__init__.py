"""Models as files for other programs (weights, ONNX, torch.export, folders for the Hugging Face hub), and serving."""
