"""The shop's side of the case study: its goods, what sellers upload, and the models that say what is in a picture."""
