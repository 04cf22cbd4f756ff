"""Cosmos-Predict2.5: text, image and video to video, in rectified flow."""
