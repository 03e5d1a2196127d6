"""What a finished model is used for: reading pictures, exporting, serving."""
