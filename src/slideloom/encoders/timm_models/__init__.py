"""Vision transformers of timm, the pathology foundation models among them."""
