"""The table of recipes, by name, in the order in which they are tried. Each stands in a file of its own.

Asked by search.py and by the help. Not aware of: what the packages they need do.
"""
