"""Tunes the models of a running server: counters become windows, a pilot of policy/tuning decides, its orders are carried out.

Made by serve/models.py. Not aware of: how instances run, protocols, what is wanted (Wanted).
"""
