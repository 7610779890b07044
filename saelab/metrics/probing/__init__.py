"""Metrics on labelled tasks: is there a latent for what we know to be in the text?"""
