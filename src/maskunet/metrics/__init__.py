"""Metrics of sets of images, intervals of estimates, and GenEval's rules for a single image."""
