"""Cosmos-Transfer2.5: the network of Cosmos-Predict2.5, steered by control blocks at every seventh of its
blocks."""
