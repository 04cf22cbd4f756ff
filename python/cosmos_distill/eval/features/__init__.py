"""Networks that measures look through. Each file has functions of a
:class:`~cosmos_distill.eval.views.View`."""
