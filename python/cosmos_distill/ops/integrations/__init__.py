"""The operators in networks of other libraries: one module each, which alone imports that library."""
