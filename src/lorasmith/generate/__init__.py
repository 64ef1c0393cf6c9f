"""Pictures out of a base and its LoRAs."""
