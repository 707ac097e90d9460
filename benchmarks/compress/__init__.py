"""Compressed models beside their originals: accuracy, size and speed through the server, overload with variants, starts."""
