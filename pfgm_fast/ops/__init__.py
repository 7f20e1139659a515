"""The operators: schemas, fake kernels, autograd, the backend table. Importing this registers them."""

from pfgm_fast.ops import schema

schema.register()
