"""What a dashboard was told, kept second by second, and played again later."""
