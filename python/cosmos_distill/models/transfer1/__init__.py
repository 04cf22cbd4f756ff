"""Cosmos-Transfer1: the base network of Cosmos-Predict1 under EDM, steered by a ControlNet."""
