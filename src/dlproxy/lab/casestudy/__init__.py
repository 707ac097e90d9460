"""An online shop in a promotion, from the pictures of its goods to the figures of the day."""
