"""The operators: schemas, registration with PyTorch, derivatives, the backend table."""
