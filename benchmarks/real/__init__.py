"""dlproxy on models with real weights, without configuration, beside the best that hand-set settings give.

A model is one entry in catalog.py; where it comes from and what it is asked is in making/.
"""
