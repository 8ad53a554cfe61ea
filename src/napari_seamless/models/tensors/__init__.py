"""Files of tensors: what torch.save and safetensors write, and what frameworks put around it."""
