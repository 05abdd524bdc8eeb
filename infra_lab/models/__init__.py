"""Model configuration, weights, tokenizer and the transformer itself."""
