"""Every decision of dlproxy, pure: no clock, socket, thread, tensor or randomness. Time always comes as an argument."""
