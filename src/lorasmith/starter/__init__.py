"""The built-in model: its renderer, its weights, and how they were made."""
