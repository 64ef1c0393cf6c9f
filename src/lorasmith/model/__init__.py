"""Models: the base, LoRAs, their file formats, and the judge. The only home of diffusers, transformers and peft."""
