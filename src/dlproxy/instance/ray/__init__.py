"""Instances that are actors of a Ray cluster; broker.py alone imports Ray, in a process of its own."""
