"""The effect of torch.compile and mixed precision on a solve and its gradient."""
