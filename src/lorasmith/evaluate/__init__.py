"""Scores of generated pictures, and what they say."""
