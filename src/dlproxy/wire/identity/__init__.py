"""Who asks: API keys, tokens and certificates become a Principal. Not aware of: what is asked for."""
