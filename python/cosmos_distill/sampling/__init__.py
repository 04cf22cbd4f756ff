"""Drawing clips: samplers bound to networks, the conditions of ``sample``, who is compared."""
