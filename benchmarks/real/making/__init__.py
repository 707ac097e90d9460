"""Makes models and their inputs, in an environment of its own that has scikit-learn, tokenizers and the converters."""
