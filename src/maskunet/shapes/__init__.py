"""The shapes world: scenes with captions in GenEval's six tasks, their drawings in two styles, and an exact judge.

vocabulary      words of captions, and which combinations are held out
layout          objects and their random layout
scenes          scenes with captions, and held-out prompts
near_misses     scenes that differ from another one in one thing
captions        captions parsed back into requirements
drawing         images of scenes
judge           objects of an image
"""
