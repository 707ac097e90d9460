"""What inputs that are made to deceive do to a network, training against them, and a guard before a network."""
