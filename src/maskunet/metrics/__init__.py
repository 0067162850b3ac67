"""Metrics of sets of pictures, and the rules by which a single picture is right or wrong."""
