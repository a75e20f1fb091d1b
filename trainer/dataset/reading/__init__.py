"""Images with captions and masks as they lie in folders and archives. Imports captions, images and settings."""
