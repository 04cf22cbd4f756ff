"""The stages of a recipe, one file each; :mod:`cosmos_distill.run` runs them."""
