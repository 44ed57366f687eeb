"""Benches of the receiver: alternatives measured side by side in one run, reported as ratios and medians."""
