"""What torch.compile and mixed precision do to a solve and its gradient."""
