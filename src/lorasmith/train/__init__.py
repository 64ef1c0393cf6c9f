"""From a recipe to a LoRA: encode, train, validate, save."""
