"""Complete episodes of a trained network, and what their scores mean."""
