"""Eight CPU devices for all tests, and hypothesis without deadlines: this machine may be busy."""

import jax
from hypothesis import settings

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)

settings.register_profile("project", deadline=None, derandomize=True)
settings.load_profile("project")
