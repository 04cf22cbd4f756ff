"""The networks that text encoders are made of, and how their folders are read."""
