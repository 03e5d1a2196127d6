"""What a finished model is for: reading pictures, export to other formats, and a web page to draw on."""
