"""What the commands do, one file for each; the flows `evaluate` and `inspect` call two of them."""
