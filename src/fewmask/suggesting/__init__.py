"""Which image to label next, and the files that labelling tools take."""
