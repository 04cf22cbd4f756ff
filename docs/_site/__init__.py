"""What `make docs` adds to the pages: those that lie elsewhere in the repository, and those that are read off
the code. Nothing here is part of the package."""
