"""The search behind `dlproxy tune`: which way of running one model, and which knobs, serve a load best on this machine."""
