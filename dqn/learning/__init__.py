"""From experience to weights: the sweep, the replay memory, the networks and their optimization."""
