"""Recipes that train, in PyTorch: pruning with fine-tuning, quantisation-aware training, distillation.

Named in the table of recipes, which imports them only when they are asked for. Not aware of: how candidates are judged.
"""
