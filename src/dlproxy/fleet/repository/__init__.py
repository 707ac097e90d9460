"""Model repositories: folders, here or in an object store, whose content says which models are served.

watcher.py follows one; scan.py says what lies in it. Not aware of: how models are loaded, who else wants models.
"""
