"""Models of images, measured: a script a claim."""
