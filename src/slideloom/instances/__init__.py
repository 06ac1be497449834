"""From slide maps to nuclei: seamless instances, the label image, and the cell table."""
