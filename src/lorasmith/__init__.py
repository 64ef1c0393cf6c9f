"""lorasmith: from a folder of photos to a Stable Diffusion LoRA that is proved good."""

__version__ = "0.1.0"
