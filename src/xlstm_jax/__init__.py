"""Training language models in JAX; this distribution holds the data loader, `xlstm_jax.dataset`."""
