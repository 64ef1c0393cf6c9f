"""The recipe: one typed TOML file that says everything about a training."""
