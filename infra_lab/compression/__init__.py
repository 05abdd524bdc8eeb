"""Smaller models from large ones, which the engine serves: distillation into a student, and structured pruning.

trainable    the engine's models as torch modules        importance   what each head, channel and layer matters
losses       what a student is told                      cutting      a model with parts of it gone
distill      the training loop                           prune        measure, choose, cut, recover
acceptance   how good a student is as a draft            to_folder    either, from a model's name to a folder
"""
