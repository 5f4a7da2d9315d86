from fyp_jax.data.loader import RecordSource as RecordSource
