"""What the receiver is worth, measured: side by side in one run, as ratios and medians."""
