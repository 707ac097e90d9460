"""The case studies: days of an online shop, served as teams do it and by dlproxy, step by step. Called by cli/casestudy.py."""
