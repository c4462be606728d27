"""Preference scorers and quality measures of images and clips: a picture or a clip to one number."""
