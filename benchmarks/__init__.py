"""Speed, measured as ratios against something in the same run."""
