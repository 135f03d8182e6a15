"""Data: opening, checking, splitting, caching and serving images and masks."""
