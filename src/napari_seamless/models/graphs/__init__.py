"""Files that carry the network itself: TorchScript, torch.export, ONNX."""
