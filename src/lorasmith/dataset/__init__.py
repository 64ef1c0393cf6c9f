"""Folders of pictures and captions: read, checked, split, cropped and drawn from. No torch here."""
