"""The shapes world: scenes with captions in GenEval's six tasks, and their drawings in two styles."""
